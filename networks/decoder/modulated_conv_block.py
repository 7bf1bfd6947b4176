"""Synthesis block of modulated 3x3 convolutions, as in StyleGAN-T."""

from __future__ import annotations

from torch import Tensor, nn

from networks.decoder.synthesis_block import BlockPlan, SynthesisBlock
from networks.decoder.to_rgb import ClampedToRGB, ToRGB
from networks.layers.modulated_conv3x3 import LayerNoise, ModulatedConv3x3, ResidualModulatedConv3x3

LAYER_GAIN = 0.5**0.5


class ModulatedConvBlock(SynthesisBlock):
    """An upsampling convolution, then pairs of a plain and a residual one. Noise maps tie it to one resolution."""

    keeps_kernel = True  # as the reference's files do

    def build_layers(self, plan: BlockPlan) -> None:
        channels, side, clamp = plan.channels, plan.side, plan.clamp
        layers = [ModulatedConv3x3(plan.n_in, channels, plan.w_dim, side, up=True, clamp=clamp)]
        for _ in range(plan.layers // 2):
            layers += [
                ModulatedConv3x3(channels, channels, plan.w_dim, side, gain=LAYER_GAIN, clamp=clamp),
                ResidualModulatedConv3x3(channels, plan.w_dim, side, gain=LAYER_GAIN, clamp=clamp),
            ]
        self.layers = nn.ModuleList(layers)

    def build_to_rgb(self, plan: BlockPlan) -> ToRGB:
        return ClampedToRGB(plan.channels, plan.w_dim, plan.clamp)

    def refine(self, x: Tensor, w: Tensor, noise: LayerNoise) -> Tensor:
        for layer in self.layers:
            x = self.run(layer, x, w, noise)
        return x
