"""What every feature extractor is: 8-bit images in, features out, and the names of the numbers made of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import ShapeError
from common.precision import full_precision
from networks.fingerprint import weights_fingerprint


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a batch of images, fp32.

    Args:
        pool: features averaged over positions, [B, D].
        spatial: features of a coarse grid of positions, flattened in the order H, W, C: [B, S]; None if there are none.
        logits: of the classifier without its bias, [B, K]; None if there is none.
    """

    pool: Tensor
    spatial: Tensor | None
    logits: Tensor | None


@dataclass(frozen=True)
class MetricNames:
    """What the numbers made of an extractor's features are called.

    Args:
        frechet: Frechet distance of `pool`.
        spatial_frechet: Frechet distance of `spatial`.
        score: exponential of the information that `logits` carry on the class (the Inception Score's formula).
        kernel: squared maximum mean discrepancy of `pool` (KID's formula).
        precision, recall: of `pool`, by neighbourhoods.
    """

    frechet: str
    spatial_frechet: str
    score: str
    kernel: str
    precision: str
    recall: str

    @classmethod
    def under(cls, name: str) -> MetricNames:
        """Names that begin with an extractor's own, so that no number is taken for an FID that is none."""
        return cls(
            frechet=f"{name}_frechet_distance",
            spatial_frechet=f"{name}_spatial_frechet_distance",
            score=f"{name}_score",
            kernel=f"{name}_kernel_distance",
            precision=f"{name}_precision",
            recall=f"{name}_recall",
        )


class Extractor(nn.Module, ABC):
    """A frozen network that maps images to features; it stays in eval mode and computes in true fp32, without TF32.

    The features of an image do not depend on its batch, but for the order in which kernels add (below 1e-5).

    Args:
        weights_origin: where the weights came from, for protocols.
    """

    name: str

    def __init__(self, weights_origin: str):
        super().__init__()
        self.weights_origin = weights_origin

    @classmethod
    @abstractmethod
    def load(cls, weights_path: str | Path | None) -> Extractor:
        """The extractor with its weights, from a file or from where they usually are."""

    @abstractmethod
    def run(self, images: Tensor) -> ImageFeatures:
        """Features of uint8 images [B, 3, H, W]."""

    @property
    def metric_names(self) -> MetricNames:
        """What its metrics are called."""
        return MetricNames.under(self.name)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over names and values of the weights."""
        return weights_fingerprint(self.state_dict())

    def train(self, mode: bool = True) -> Extractor:
        """Stay in eval mode: the network is a fixed measure."""
        return super().train(False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> ImageFeatures:
        """Features of uint8 images [B, 3, H, W] of any size. Raises ShapeError for anything else."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(
                f"images for the features of {self.name}: found {images.dtype} {list(images.shape)}, expected uint8 "
                "[B, 3, H, W]."
            )
        with full_precision(images.device), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.run(images)


def first_channels(feature_map: Tensor, count: int) -> Tensor:
    """The first channels of a map [B, C, h, w], flattened in the order H, W, C: [B, h * w * count]."""
    return feature_map[:, :count].permute(0, 2, 3, 1).flatten(1)
