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
    model_classes = (("dinov2", "Dinov2Model"), ("dinov2_with_registers", "Dinov2WithRegistersModel"))
    reference_names = (
        ("encoder.layer.{}.attention.q_proj", "encoder.layer.{}.attention.attention.query"),
        ("encoder.layer.{}.attention.k_proj", "encoder.layer.{}.attention.attention.key"),
        ("encoder.layer.{}.attention.v_proj", "encoder.layer.{}.attention.attention.value"),
        ("encoder.layer.{}.attention.o_proj", "encoder.layer.{}.attention.output.dense"),
    )

    @property
    def prefix_tokens(self) -> int:
        """The class token and any registers."""
        return 1 + getattr(self.backbone.config, "num_register_tokens", 0)

    def embed(self, pixels: Tensor) -> tuple[Tensor, Any]:
        return self.backbone.embeddings(pixels), None

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.encoder.layer

    def normalise(self, state: Tensor) -> Tensor:
        return self.backbone.layernorm(state)

    def summarise(self, state: Tensor) -> Tensor:
        """The normalised class token."""
        return self.normalise(state)[:, 0]
