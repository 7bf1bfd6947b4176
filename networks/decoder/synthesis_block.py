"""One block of the progressive decoder: doubles the side, refines, gives an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from networks.decoder.to_rgb import ToRGB
from networks.interfaces import Conditioning
from networks.layers.attention import CrossAttentionBlock, SelfAttentionBlock
from networks.layers.modulated_conv3x3 import LayerNoise
from networks.layers.resample import STYLEGAN_TAPS, BlurUpsampler, separable_kernel, upsample2d

SMALL_BLUR, WIDE_BLUR = (1, 2, 1), (1, 4, 6, 4, 1)


@dataclass(frozen=True)
class BlockPlan:
    """What a synthesis block is made of; the decoder makes one per block from its configuration.

    Attributes:
        index: place of the block, 0 is the first.
        side: of its output, in a model at its nominal resolution.
        n_in: channels that come in, features and latent branch together.
        n_skip: channels of the skip sum; None in the first block.
        channels: of its output.
        w_dim: width of w.
        layers: style-modulated layers before the attention.
        self_attention, cross_attention: attention layers of either kind.
        heads, ff_mult: their heads, and the width of their feed-forward layers over `channels`.
        context_channels: width of the tokens that cross-attention looks at.
        blur: filter after upsampling.
        sums_features: images come from an upsampled sum of features; else images are upsampled and summed.
        noise: ConvNeXt layers with a noise map.
        clamp: greatest activation of layers that are not ConvNeXt; None: no limit.
    """

    index: int
    side: int
    n_in: int
    n_skip: int | None
    channels: int
    w_dim: int
    layers: int
    self_attention: int
    cross_attention: int
    heads: int
    ff_mult: int
    context_channels: int
    blur: bool
    sums_features: bool
    noise: bool
    clamp: float | None

    @property
    def kernel_size(self) -> int:
        """Side of the depthwise kernels: 5 in blocks 0 and 1, 7 from block 2 on."""
        return 5 if self.index <= 1 else 7

    @property
    def blur_taps(self) -> tuple[int, ...] | None:
        """Taps of the blur after upsampling: 3 in blocks 0 to 2, 5 from block 3 on."""
        return (SMALL_BLUR if self.index <= 2 else WIDE_BLUR) if self.blur else None


class SynthesisBlock(nn.Module):
    """Upsample and refine -> self-attention -> cross-attention -> RGB, with a skip connection from block to block.

    The features x go on to the next block. The image is made of the skip sum t_k = upsample(t_{k-1}) + x_k, or is
    itself the skip sum: image_k = upsample(image_{k-1}) + RGB(x_k).

    A kind of block says what `refine` does and which layers it needs for that.

    Attributes:
        recomputed: of its layers only the inputs are kept for the backward pass, which computes the rest once more
            (activation checkpointing); False to begin with.
    """

    keeps_kernel: ClassVar[bool] = False  # carry the filter also where no image is upsampled

    def __init__(self, plan: BlockPlan):
        super().__init__()
        self.recomputed = False
        self.sums_features = plan.sums_features
        self.build_layers(plan)
        self.attention = nn.ModuleList(
            SelfAttentionBlock(plan.channels, plan.heads, plan.ff_mult) for _ in range(plan.self_attention)
        )
        self.cross_attention = nn.ModuleList(
            CrossAttentionBlock(plan.channels, plan.context_channels, plan.heads, plan.ff_mult)
            for _ in range(plan.cross_attention)
        )
        if plan.sums_features and plan.n_skip is not None:
            self.skip_upsample = BlurUpsampler(plan.n_skip, plan.channels, plan.blur_taps)
        if self.keeps_kernel or not plan.sums_features:
            self.register_buffer("resample_kernel", separable_kernel(STYLEGAN_TAPS))
        self.to_rgb = self.build_to_rgb(plan)

    # What a kind of block provides.

    def build_layers(self, plan: BlockPlan) -> None:
        """Register what `refine` uses; the style-modulated layers as `layers`."""
        raise NotImplementedError

    def build_to_rgb(self, plan: BlockPlan) -> ToRGB:
        """The layer from features to an image."""
        return ToRGB(plan.channels, plan.w_dim)

    def refine(self, x: Tensor, w: Tensor, noise: LayerNoise) -> Tensor:
        """[B, n_in, H, W] -> [B, channels, 2H, 2W]."""
        raise NotImplementedError

    # What all kinds share.

    def run(self, layer: nn.Module, *inputs: Any) -> Tensor:
        """A layer's output; see `recomputed`."""
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)  # no layer draws anything
        return layer(*inputs)

    def forward(
        self, x: Tensor, skip: Tensor | None, w: Tensor, conditioning: Conditioning | None, noise: LayerNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(features of the previous block with the latent branch, its skip sum, ...) -> (features, skip sum, image)."""
        x = self.refine(x, w, noise)
        for attention in self.attention:
            x = self.run(attention, x)
        for attention in self.cross_attention:
            x = self.run(attention, x, conditioning.tokens, conditioning.mask)
        if self.sums_features:
            skip = x if skip is None else self.skip_upsample(skip) + x
            return x, skip, self.to_rgb(skip, w)
        image = self.to_rgb(x, w)
        if skip is not None:
            image = upsample2d(skip, self.resample_kernel) + image
        return x, image, image
