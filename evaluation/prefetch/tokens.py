"""Tokens of several views of each image, as autoregressive models are trained on them: `data.tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from evaluation.prefetch.format import Encoded
from evaluation.prefetch.shard_files import ShardFormat
from evaluation.tokens import token_kind, tokens_of_images

Crops = Literal["centre", "ten"]
TEN_CROP_RATIO = 1.1  # side of the centre crop of which the four corners and the centre are taken, over theirs


class TokenFormat(ShardFormat):
    """Column `tokens`, uint16 [n, A, N].

    Args:
        crops: views of an image. "centre": the centre crop, and mirrored (A = 2). "ten": corners (top left, top right,
            bottom left, bottom right) and centre of a slightly larger one, then those of its mirror image (A = 10).
        resolution: side of a view in pixels.
    """

    name = "tokens"
    file_stem = "tokens"

    def __init__(self, crops: Crops, resolution: int):
        self._crops, self._resolution = crops, resolution

    def identity(self) -> dict[str, Any]:
        return {"crops": self._crops}

    def identity_of(self, model: nn.Module) -> dict[str, Any]:
        return token_kind(model, self._resolution, self._resolution).to_json()

    def crop_side(self, resolution: int) -> int:
        return int(TEN_CROP_RATIO * resolution) if self._crops == "ten" else resolution

    def encode(self, model: nn.Module, images: Tensor, keys: Sequence[str]) -> Encoded:
        views = [tokens_of_images(model, view) for view in self.views(images)]
        return Encoded({"tokens": torch.stack(views, dim=1).to(torch.uint16).cpu()})

    def views(self, images: Tensor) -> tuple[Tensor, ...]:
        """The views of images [B, 3, R, R], each [B, 3, S, S]."""
        if self._crops == "centre":
            return images, images.flip(-1)
        return tv.ten_crop(images, [self._resolution, self._resolution])
