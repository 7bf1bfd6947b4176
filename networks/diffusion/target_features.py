"""Features that REG is trained with: tokens of frozen encoders to align with, and a class token to denoise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ShapeError, UserError
from common.precision import frozen_precision
from common.value_range import uint8_to_unit
from networks.encoders.dinov2 import DINOv2Encoder
from networks.encoders.loading import empty_vision_encoder, load_vision_encoder
from networks.encoders.vit import ViTEncoder


@dataclass(frozen=True)
class TargetFeatures:
    """What target encoders make of a batch of images.

    Attributes:
        tokens: of each encoder, its class token and one token per token of the diffusion model, as its layer -1 has
            them (DINOv2: behind the final norm), [B, 1 + N, D_i], float32.
    """

    tokens: list[Tensor]

    @property
    def class_token(self) -> Tensor:
        """The one that is denoised with the latent: that of the last encoder, [B, D]."""
        return self.tokens[-1][:, 0]


class TargetEncoders(nn.Module):
    """The frozen target encoders of REG (arXiv:2507.01467), each run at the grid of the diffusion model's tokens.

    Any encoder of the project will do that has a class token. Always in eval mode and without gradients.

    Args:
        encoders: of the families that are vision transformers with a class token.
        side: tokens per side of the diffusion model, 16 for f16 latents of 256-pixel images.
        names: of the encoders, for messages.
    Raises: UserError if an encoder has no class token.
    """

    def __init__(self, encoders: Sequence[ViTEncoder], side: int, names: Sequence[str]):
        super().__init__()
        for encoder, name in zip(encoders, names, strict=True):
            if not isinstance(encoder, ViTEncoder) or encoder.prefix_tokens == 0:
                raise UserError(
                    f"target encoder {name!r}: has no class token, which REG denoises; use one with, such as DINOv2."
                )
            if isinstance(encoder, DINOv2Encoder):
                resample_positions(encoder, side)
        self.encoders = nn.ModuleList(encoders)
        self.side = side

    @property
    def widths(self) -> list[int]:
        """D_i of each encoder."""
        return [encoder.layer_channels(-1) for encoder in self.encoders]

    def train(self, mode: bool = True) -> TargetEncoders:
        """Stay in eval mode: the encoders are frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> TargetFeatures:
        """Features of images.

        Args:
            images: uint8 [B, 3, H, W], square.
        Raises: ShapeError for anything else.
        """
        if (
            images.dtype != torch.uint8
            or images.ndim != 4
            or images.shape[1] != 3
            or images.shape[2] != images.shape[3]
        ):
            raise ShapeError(f"found images {list(images.shape)} ({images.dtype}), expected uint8 [B, 3, S, S].")
        return TargetFeatures([self._tokens(encoder, images) for encoder in self.encoders])

    def _tokens(self, encoder: ViTEncoder, images: Tensor) -> Tensor:
        pixels = (uint8_to_unit(images) - encoder.pixel_mean) / encoder.pixel_std
        # The normalised pixels are resized, and without antialiasing, as the published model was trained.
        size = self.side * encoder.patch_size
        pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False)
        with frozen_precision(pixels.device):
            state = encoder.normalise(encoder.hidden_states(pixels, {encoder.depth})[encoder.depth]).float()
        return torch.cat([state[:, :1], state[:, encoder.prefix_tokens :]], dim=1)  # without registers


def require_fit(z_dims: Sequence[int], widths: Sequence[int]) -> None:
    """Raise UserError if a network with these `z_dims` cannot be trained with target encoders of these widths."""
    if list(z_dims) != list(widths):
        raise UserError(f"z_dims: found {list(z_dims)}, but the target encoders have {list(widths)} channels.")
    if widths[-1] != widths[0]:
        raise UserError(
            f"z_dims: {list(z_dims)}: the class token comes from the last target encoder and the network takes it as "
            "wide as the first; give encoders of one width in these places."
        )


def resample_positions(encoder: DINOv2Encoder, side: int) -> None:
    """Bring DINOv2's position table to a grid of `side` tokens, bicubically and with antialiasing, once and for all.

    The library would do it at every image, and without antialiasing.
    """
    table = encoder.backbone.embeddings.position_embeddings
    own_side = encoder.backbone.config.image_size // encoder.patch_size
    grid = rearrange(table[:, 1:], "1 (h w) d -> 1 d h w", h=own_side)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    resampled = torch.cat([table[:, :1], rearrange(grid, "1 d h w -> 1 (h w) d")], dim=1)
    encoder.backbone.embeddings.position_embeddings = nn.Parameter(resampled.detach(), requires_grad=False)


def load_target_encoders(vfm_names: Sequence[str], side: int) -> TargetEncoders:
    """The encoders of these folders, hub ids or names of timm.

    Args:
        side: tokens per side of the diffusion model.
    Raises: UserError if one cannot be loaded whole, or has no class token.
    """
    return TargetEncoders([load_vision_encoder(name, [-1]) for name in vfm_names], side, vfm_names)


def empty_target_encoders(vfm_names: Sequence[str], side: int) -> TargetEncoders | None:
    """The same without their pretrained weights, on the current device; None where files of one are out of reach."""
    encoders = [empty_vision_encoder(name, [-1]) for name in vfm_names]
    return None if None in encoders else TargetEncoders(encoders, side, vfm_names)
