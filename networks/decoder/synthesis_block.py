"""One block of the progressive decoder: doubles the side, refines, gives an image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from networks.decoder.to_rgb import ToRGB
from networks.layers.attention import SelfAttentionBlock
from networks.layers.convnext import ModulatedConvNeXt
from networks.layers.resample import BlurUpsampler

SMALL_BLUR, WIDE_BLUR = (1, 2, 1), (1, 4, 6, 4, 1)


@dataclass(frozen=True)
class BlockPlan:
    """What a synthesis block is made of; the decoder makes one per block from its configuration."""

    index: int
    n_in: int
    n_skip: int | None
    channels: int
    w_dim: int
    layers: int
    attention_depth: int
    attention_heads: int
    attention_ff_mult: int
    blur: bool
    noise: bool

    @property
    def kernel_size(self) -> int:
        """Side of the depthwise kernels: 5 in blocks 0 and 1, 7 from block 2 on."""
        return 5 if self.index <= 1 else 7

    @property
    def blur_taps(self) -> tuple[int, ...] | None:
        """Taps of the blur after upsampling: 3 in blocks 0 to 2, 5 from block 3 on."""
        return (SMALL_BLUR if self.index <= 2 else WIDE_BLUR) if self.blur else None


class SynthesisBlock(nn.Module):
    """Upsample -> ConvNeXt layers -> self-attention -> skip sum -> RGB.

    The features x go on to the next block. The image is made of the skip sum t_k = upsample(t_{k-1}) + x_k.
    """

    def __init__(self, plan: BlockPlan):
        super().__init__()
        self.upsample = BlurUpsampler(plan.n_in, plan.channels, plan.blur_taps, norm_first=plan.index > 0)
        # The noise map has the side that this block has in a model for 256 pixels, whatever this model's resolution.
        noise_side = 8 << plan.index if plan.noise else None
        self.layers = nn.ModuleList(
            ModulatedConvNeXt(plan.channels, plan.w_dim, plan.kernel_size, noise_side) for _ in range(plan.layers)
        )
        self.attention = nn.ModuleList(
            SelfAttentionBlock(plan.channels, plan.attention_heads, plan.attention_ff_mult)
            for _ in range(plan.attention_depth)
        )
        if plan.n_skip is not None:
            self.skip_upsample = BlurUpsampler(plan.n_skip, plan.channels, plan.blur_taps)
        self.to_rgb = ToRGB(plan.channels, plan.w_dim)

    def forward(self, x: Tensor, skip: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(features of the previous block with the latent branch, its skip sum, w) -> (features, skip sum, image)."""
        x = self.upsample(x)
        for layer in self.layers:
            x = layer(x, w)
        for attention in self.attention:
            x = attention(x)
        skip = x if skip is None else self.skip_upsample(skip) + x
        return x, skip, self.to_rgb(skip, w)
