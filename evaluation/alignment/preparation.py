"""Preparation of features before they are compared: outliers clipped, then every image's vector normalised."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

CLIPPED_SHARE = 0.05
Clip = Literal["matrix", "rows", "none"]


def clip_threshold(features: Tensor, clip: Literal["matrix", "rows"]) -> Tensor:
    """The absolute value above which values count as outliers, one for the whole matrix [N, D].

    Args:
        clip: "matrix": element int(0.95 N D) of all absolute values in ascending order; "rows": the mean over rows of
            the interpolated 0.95 quantile of the row's absolute values.
    """
    sizes = features.abs()
    if clip == "rows":
        return torch.quantile(sizes, 1 - CLIPPED_SHARE, dim=1).mean()
    place = int((1 - CLIPPED_SHARE) * sizes.numel())
    return sizes.flatten().kthvalue(place + 1).values


def prepare(features: Tensor, clip: Clip = "matrix") -> Tensor:
    """Clip outliers, then divide every row by its length.

    Args:
        features: [N, D], one image per row.
        clip: how outliers are found, see `clip_threshold`; published scores use "matrix".
    Returns: float32 [N, D].
    """
    features = features.float()
    if clip != "none":
        threshold = clip_threshold(features, clip)
        features = features.clamp(-threshold, threshold)
    return torch.nn.functional.normalize(features, dim=1, eps=1e-12)
