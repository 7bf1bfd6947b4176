"""The objective of REG (arXiv:2507.01467): latent and class token are denoised together, and tokens aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import ShapeError
from losses.config import REGLossConfig
from losses.flow_matching import squared_error
from losses.paths import PATHS, Path, PathPoint

REG_PATHS: dict[str, Path] = {"linear": PATHS["Linear"], "cosine": PATHS["GVP"]}


@dataclass(frozen=True)
class REGLoss:
    """The terms, float32.

    Attributes:
        denoise: squared error of the latent's velocity for each sample, [B].
        cls: the same of the class token, [B].
        proj: minus the mean cosine of projected and target tokens, a scalar; REPA's alignment.
    """

    denoise: Tensor
    cls: Tensor
    proj: Tensor

    def total(self, config: REGLossConfig) -> Tensor:
        """mean denoise + proj_coeff proj + cls_weight mean cls, the scalar to be minimised."""
        return self.denoise.mean() + config.proj_coeff * self.proj + config.cls_weight * self.cls.mean()


def reg_loss(
    velocity: Tensor,
    class_velocity: Tensor,
    projected: Sequence[Tensor],
    point: PathPoint,
    class_point: PathPoint,
    targets: Sequence[Tensor],
) -> REGLoss:
    """Compare what REG gives at a point of the path with what it should give there.

    Args:
        velocity: of the latent, [B, C, h, w].
        class_velocity: of the class token, [B, D].
        projected: for each target encoder its tokens as the network projects them, [B, N + 1, D_i].
        point, class_point: of latent and class token, at the same times, with noise of their own.
        targets: for each target encoder its class token and patch tokens, [B, N + 1, D_i]; no gradient reaches them.
    Raises: ShapeError if anything differs in shape from its target.
    """
    return REGLoss(
        denoise=squared_error(velocity, point.velocity),
        cls=squared_error(class_velocity, class_point.velocity),
        proj=alignment_loss(projected, targets),
    )


def alignment_loss(projected: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Minus the cosine of tokens [B, N + 1, D_i], averaged over target encoders, samples and tokens."""
    found, expected = ([list(tokens.shape) for tokens in side] for side in (projected, targets))
    if found != expected:
        raise ShapeError(f"projected tokens {found} and tokens of the target encoders {expected} must agree.")
    cosines = [
        (F.normalize(ours.float(), dim=-1) * F.normalize(target.detach().float(), dim=-1)).sum(dim=-1)
        for ours, target in zip(projected, targets)
    ]
    return -torch.stack([cosine.mean() for cosine in cosines]).mean()
