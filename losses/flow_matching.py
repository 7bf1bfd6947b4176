"""Flow matching of latents, as LightningDiT is trained (arXiv:2501.01423, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from common.errors import ShapeError
from losses.config import TransportConfig
from losses.paths import PATHS, Path, PathPoint, along


def per_sample_mean(x: Tensor) -> Tensor:
    """Mean over everything but the batch: [B, ...] -> [B]."""
    return x.flatten(1).mean(dim=1)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """mean (prediction - target)^2 of each sample, float32 [B]."""
    if prediction.shape != target.shape:
        raise ShapeError(f"prediction {list(prediction.shape)} and target {list(target.shape)} must have one shape.")
    return per_sample_mean((prediction.float() - target.float()).square())


@dataclass(frozen=True)
class FlowMatchingLoss:
    """The terms of each sample, float32 [B].

    Attributes:
        mse: (weighted) squared error; its mean is what the reference logs.
        cosine: mean over positions of 1 - the cosine over channels; None where it is not asked for.
    """

    mse: Tensor
    cosine: Tensor | None

    @property
    def total(self) -> Tensor:
        """mean mse + mean cosine, the scalar to be minimised."""
        return self.mse.mean() if self.cosine is None else self.mse.mean() + self.cosine.mean()


def flow_matching_loss(output: Tensor, point: PathPoint, transport: TransportConfig) -> FlowMatchingLoss:
    """Compare what a network gives at a point of the path with what it should give there.

    velocity: (v - v*)^2;  noise: w (e - noise)^2;  score: w (s sigma + noise)^2,  with w = 1, (g / sigma)^2 for the
    weight `velocity` or g / sigma^2 for `likelihood`.

    Args:
        output: velocity (dx/dt, towards the noise), noise or score, [B, C, h, w].
        point: of `PATHS[transport.path_type]`, at which the network was evaluated.
        transport: what the output is, and how the error is weighted.
    Raises: ShapeError if output and point differ in shape.
    """
    path = PATHS[transport.path_type]
    if transport.prediction == "velocity":
        mse = squared_error(output, point.velocity)
        return FlowMatchingLoss(mse, cosine_distance(output, point.velocity) if transport.use_cosine_loss else None)
    assert not transport.use_cosine_loss, transport
    if transport.prediction == "score":
        output = -output * path.coefficients(along(point.t, output)).sigma
    mse = squared_error(output, point.noise)
    return FlowMatchingLoss(mse * time_weight(path, point.t, transport), None)


def cosine_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over positions of 1 - cos over channels of each sample: two [B, C, h, w] -> float32 [B]."""
    return per_sample_mean(1 - F.cosine_similarity(prediction.float(), target.float(), dim=1, eps=1e-8))


def time_weight(path: Path, t: Tensor, transport: TransportConfig) -> Tensor | float:
    """The weight of a squared error of the noise at times [B]."""
    if transport.loss_weight is None:
        return 1.0
    g, sigma = path.diffusion(t), path.coefficients(t).sigma
    return (g / sigma).square() if transport.loss_weight == "velocity" else g / sigma.square()
