"""Features of vision foundation models: every encoder family of the project, several layers at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluation.alignment.config import VFMSection
from evaluation.alignment.models.base import ImageModel, ReadShape, fill_up_sides
from networks.config import whole_patches
from networks.encoders.base import VisionEncoder
from networks.encoders.loading import load_vision_encoder
from networks.fingerprint import weights_fingerprint

SUMMARY = "summary"


class VFMFeatures(ImageModel):
    """Layers of a frozen encoder, averaged over their tokens; or the family's own summary of an image.

    Args:
        encoder: hands out the layers that are wanted.
        pool: "mean" over the patch tokens of each layer, without class and register tokens; "summary".
    """

    def __init__(self, encoder: VisionEncoder, pool: str):
        self.encoder, self.pool = encoder, pool
        self.outputs = (SUMMARY,) if pool == SUMMARY else tuple(f"layer_{layer}" for layer in encoder.layers)
        self.weights_sha256 = weights_fingerprint(encoder.state_dict())
        self._multiple = whole_patches(encoder.pixel_multiple, encoder.scale_factor)

    def features(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        images = fill_up_sides(images, self._multiple)
        if self.pool == SUMMARY:
            return {SUMMARY: self.encoder.pooled(images)}
        levels = self.encoder(images).levels
        return {name: tokens.mean(1) for name, tokens in zip(self.outputs, levels, strict=True)}


def load(section: VFMSection, device: torch.device, read_shape: ReadShape) -> VFMFeatures:
    """Load an encoder. Raises: UserError if it cannot be loaded whole, or has no such layer."""
    layers = [-1] if section.layers == "all" else section.layers
    encoder = load_vision_encoder(section.vfm_name, layers, section.scale_factor, section.family, section.revision)
    if section.layers == "all":
        encoder.layers = [*range(1, encoder.depth), -1]
    return VFMFeatures(encoder.to(device), section.pool)
