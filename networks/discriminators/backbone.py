"""Frozen vision transformers whose features the projected discriminator judges by.

The real one is DINO ViT-S/16. `random_tiny` has random weights: it makes the discriminator run where DINO's file is
not at hand, in tests and demonstrations, and says nothing about quality.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from common.registry import Registry

DINO_MODEL = "vit_small_patch16_224.dino"


@dataclass(frozen=True)
class BackboneKind:
    """A backbone that a configuration may name.

    Args:
        model: timm's name of the architecture.
        taps: blocks whose outputs are handed out, before the embedding.
        options: changes to the architecture.
    """

    model: str
    taps: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


BACKBONES: Registry = Registry(
    "discriminator backbone",
    {
        "dino_vits16": BackboneKind(DINO_MODEL, (2, 5, 8, 11)),
        "random_tiny": BackboneKind(
            DINO_MODEL,
            (0, 1, 2, 3),
            {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4},
        ),
    },
)


class TappedViT(nn.Module):
    """A frozen vision transformer that hands out the tokens of several depths.

    Its weights get no gradient, but gradients flow through it to the image. It stays in eval mode.

    Args:
        kind: which one.
        gelu: activation of its blocks: `gelu`, with which DINO was trained, or `gelu_tanh`, which approximates it.
    """

    def __init__(self, kind: BackboneKind, gelu: str = "gelu"):
        super().__init__()
        import timm

        self.taps = kind.taps
        vit = timm.create_model(kind.model, pretrained=False, act_layer=gelu, **kind.options)
        self.vit = vit.eval().requires_grad_(False)
        self.side = self.vit.patch_embed.img_size[0]
        self.channels = self.vit.embed_dim

    def train(self, mode: bool = True) -> TappedViT:
        """Stay in eval mode: the backbone is frozen."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels [B, 3, side, side] -> patch features [B, C, N] of each tapped block, then the embedding.

        The class token is added to every patch token. Patches are in row-major order.
        """
        x = self.vit.patch_embed(pixels)  # [B, N, C]
        x = torch.cat([self.vit.cls_token.expand(len(x), -1, -1), x], dim=1) + self.vit.pos_embed
        embedding, tapped = x, []
        for number, block in enumerate(self.vit.blocks[: max(self.taps) + 1]):
            x = block(x)
            if number in self.taps:
                tapped.append(x)
        return [(x[:, 1:] + x[:, :1]).mT for x in [*tapped, embedding]]


def empty_backbone(name: str, gelu: str = "gelu") -> TappedViT:
    """A backbone without its weights, on the current device (meta, to count)."""
    return TappedViT(BACKBONES[name], gelu)
