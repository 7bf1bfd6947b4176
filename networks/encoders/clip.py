"""The vision tower of CLIP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from networks.encoders.base import CLIP_MEAN, CLIP_STD
from networks.encoders.transformers_vit import TransformersViT


class CLIPEncoder(TransformersViT):
    """CLIP vision tower; position embeddings are interpolated bicubically to other image sizes.

    Layer 0 is what enters the first block, behind the norm that CLIP has there. Layer -1 is the last block behind the
    final norm, for patches too, where CLIP itself uses that norm for the class token alone.
    """

    interpolation = "bicubic"
    mean, std = CLIP_MEAN, CLIP_STD
    model_classes = (("clip", "CLIPVisionModel"), ("clip_vision_model", "CLIPVisionModel"))

    @property
    def prefix_tokens(self) -> int:
        """The class token."""
        return 1

    def embed(self, pixels: Tensor) -> tuple[Tensor, Any]:
        return self.backbone.pre_layrnorm(self.backbone.embeddings(pixels, interpolate_pos_encoding=True)), None

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.encoder.layers

    def normalise(self, state: Tensor) -> Tensor:
        return self.backbone.post_layernorm(state)

    def summarise(self, state: Tensor) -> Tensor:
        """The normalised class token."""
        return self.normalise(state)[:, 0]
