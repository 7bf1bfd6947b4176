"""DINOv2, with or without register tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from networks.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from networks.encoders.transformers_vit import TransformersViT


class DINOv2Encoder(TransformersViT):
    """DINOv2; position embeddings are interpolated bicubically to other image sizes."""

    interpolation = "bicubic"
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    @classmethod
    def model_class(cls, model_type: str | None) -> Any:
        from transformers import Dinov2Model, Dinov2WithRegistersModel

        return Dinov2WithRegistersModel if model_type == "dinov2_with_registers" else Dinov2Model

    @property
    def prefix_tokens(self) -> int:
        """The class token and any registers."""
        return 1 + getattr(self.backbone.config, "num_register_tokens", 0)

    def embed(self, pixels: Tensor) -> Tensor:
        return self.backbone.embeddings(pixels)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.encoder.layer

    @property
    def final_norm(self) -> nn.Module:
        return self.backbone.layernorm
