"""Synthesis block of ConvNeXt layers."""

from __future__ import annotations

from torch import Tensor, nn

from networks.decoder.synthesis_block import BlockPlan, SynthesisBlock
from networks.layers.convnext import ModulatedConvNeXt
from networks.layers.modulated_conv3x3 import LayerNoise
from networks.layers.resample import BlurUpsampler


class ConvNeXtBlock(SynthesisBlock):
    """Upsampler with a fixed blur, then style-modulated ConvNeXt layers; works at any side."""

    def build_layers(self, plan: BlockPlan) -> None:
        self.upsample = BlurUpsampler(plan.n_in, plan.channels, plan.blur_taps, norm_first=plan.index > 0)
        # The noise map has the side that this block has in a model for 256 pixels, whatever this model's resolution.
        noise_side = 8 << plan.index if plan.noise else None
        self.layers = nn.ModuleList(
            ModulatedConvNeXt(plan.channels, plan.w_dim, plan.kernel_size, noise_side) for _ in range(plan.layers)
        )

    def refine(self, x: Tensor, w: Tensor, noise: LayerNoise) -> Tensor:
        x = self.run(self.upsample, x)
        for layer in self.layers:
            x = self.run(layer, x, w)
        return x
