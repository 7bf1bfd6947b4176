"""DINOv3 vision transformers of the transformers library; timm's belong to the family `timm`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from networks.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from networks.encoders.transformers_vit import TransformersViT


class DINOv3Encoder(TransformersViT):
    """DINOv3, trained on web images (LVD); rotary positions fit any image size, layer 0 knows no positions."""

    interpolation = "bicubic"
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    model_classes = (("dinov3_vit", "DINOv3ViTModel"),)

    @property
    def prefix_tokens(self) -> int:
        """The class token and any registers."""
        return 1 + self.backbone.config.num_register_tokens

    def embed(self, pixels: Tensor) -> tuple[Tensor, Any]:
        return self.backbone.embeddings(pixels), self.backbone.rope_embeddings(pixels)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.model.layer

    def step(self, number: int, state: Tensor, context: Any) -> Tensor:
        return self.blocks[number](state, position_embeddings=context)

    def normalise(self, state: Tensor) -> Tensor:
        return self.backbone.norm(state)

    def summarise(self, state: Tensor) -> Tensor:
        """The normalised class token."""
        return self.normalise(state)[:, 0]
