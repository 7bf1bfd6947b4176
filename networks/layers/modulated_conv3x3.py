"""Style-modulated 3x3 convolution of the StyleGAN family, as the decoder without ConvNeXt layers has it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.layers.linear import StyleAffine
from networks.layers.modulated import modulated_conv, same_conv
from networks.layers.norm import GroupNorm
from networks.layers.resample import STYLEGAN_TAPS, separable_kernel, upsampling_conv

NoiseMode = Literal["const", "random", "none"]


@dataclass(frozen=True)
class LayerNoise:
    """Which noise the layers add to their output.

    Args:
        mode: the fixed map of each layer (`const`), a fresh one per sample (`random`), or none.
        generator: source of fresh noise; None: PyTorch's default one.
    """

    mode: NoiseMode = "const"
    generator: torch.Generator | None = None


FIXED_NOISE = LayerNoise()


class ModulatedConv3x3(nn.Module):
    """y = clamp(lrelu(conv_s(x) + noise + b) * sqrt(2) * gain), with `conv_s` modulated by styles s of w.

    Args:
        n_in, n_out: channels.
        w_dim: width of w.
        side: side of the output, at which the fixed noise map is kept; no other side is possible.
        up: double the side.
        gain: factor of the output, and of the clamp.
        clamp: greatest magnitude of the output over `gain`; None: no limit.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        w_dim: int,
        side: int,
        up: bool = False,
        gain: float = 1.0,
        clamp: float | None = 256,
    ):
        super().__init__()
        self.up = up
        self.gain = gain
        self.clamp = clamp
        self.style_affine = StyleAffine(w_dim, n_in)
        self.weight = nn.Parameter(torch.randn(n_out, n_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.register_buffer("noise", torch.randn(side, side))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        # Layers that keep the side have no use for it; they carry it because the reference's files do.
        self.register_buffer("resample_kernel", separable_kernel(STYLEGAN_TAPS))

    def forward(self, x: Tensor, w: Tensor, noise: LayerNoise = FIXED_NOISE) -> Tensor:
        """[B, n_in, H, W] and w [B, w_dim] -> [B, n_out, H, W], or twice these sides."""
        convolve = partial(upsampling_conv, kernel=self.resample_kernel) if self.up else same_conv
        y = modulated_conv(x, self.weight, self.style_affine(w), convolve=convolve)
        if noise.mode != "none":
            y = y + (self._noise_map(y.shape[0], noise) * self.noise_strength).to(y.dtype)
        y = F.leaky_relu(y + self.bias.to(y.dtype)[:, None, None], 0.2) * (2**0.5 * self.gain)
        return y if self.clamp is None else y.clamp(-self.clamp * self.gain, self.clamp * self.gain)

    def _noise_map(self, count: int, noise: LayerNoise) -> Tensor:
        if noise.mode == "const":
            return self.noise
        shape = (count, 1, *self.noise.shape)
        return torch.randn(shape, generator=noise.generator, device=self.noise.device)


class ResidualModulatedConv3x3(ModulatedConv3x3):
    """y = (gamma * layer(GN x) + GN x) * sqrt(2)."""

    def __init__(self, channels: int, w_dim: int, side: int, gain: float = 1.0, clamp: float | None = 256):
        super().__init__(channels, channels, w_dim, side, gain=gain, clamp=clamp)
        self.norm = GroupNorm(32, channels)
        self.gamma = nn.Parameter(torch.full((1, channels, 1, 1), 1e-5))

    def forward(self, x: Tensor, w: Tensor, noise: LayerNoise = FIXED_NOISE) -> Tensor:
        x = self.norm(x)
        return torch.addcmul(x, self.gamma.to(x.dtype), super().forward(x, w, noise)) * 2**0.5
