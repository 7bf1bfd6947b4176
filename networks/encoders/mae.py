"""ViT-MAE: the encoder of a masked autoencoder, on whole images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from networks.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from networks.encoders.transformers_vit import TransformersViT


class MAEEncoder(TransformersViT):
    """ViT-MAE without masking; position embeddings are interpolated bicubically to other image sizes."""

    antialias_prescale = False
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    model_classes = (("vit_mae", "ViTMAEModel"),)
    reference_names = (
        ("layers.{}.attention.q_proj", "encoder.layer.{}.attention.attention.query"),
        ("layers.{}.attention.k_proj", "encoder.layer.{}.attention.attention.key"),
        ("layers.{}.attention.v_proj", "encoder.layer.{}.attention.attention.value"),
        ("layers.{}.attention.o_proj", "encoder.layer.{}.attention.output.dense"),
        ("layers.{}.mlp.fc1", "encoder.layer.{}.intermediate.dense"),
        ("layers.{}.mlp.fc2", "encoder.layer.{}.output.dense"),
        ("layers.{}", "encoder.layer.{}"),
    )

    def __init__(self, backbone: nn.Module, layers: list[int], scale_factor: float):
        super().__init__(backbone, layers, scale_factor)
        self.backbone.config.mask_ratio = 0.0

    @property
    def prefix_tokens(self) -> int:
        """The class token."""
        return 1

    def embed(self, pixels: Tensor) -> tuple[Tensor, Any]:
        # The model keeps the patches with the least noise, sorted by it: growing noise keeps all of them in order.
        patches = (pixels.shape[2] // self.patch_size) * (pixels.shape[3] // self.patch_size)
        noise = torch.arange(patches, dtype=torch.float32, device=pixels.device).expand(len(pixels), -1)
        return self.backbone.embeddings(pixels, noise=noise, interpolate_pos_encoding=True)[0], None

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.layers

    def normalise(self, state: Tensor) -> Tensor:
        return self.backbone.layernorm(state)

    def summarise(self, state: Tensor) -> Tensor:
        """The mean of the normalised patches."""
        return self.normalise(state)[:, 1:].mean(1)
