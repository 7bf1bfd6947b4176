"""Heads of the projected discriminators (StyleGAN-T, arXiv 2301.09515)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from networks.discriminators.layers import LEAKY_SLOPE, LocalBatchNorm, SpectralConv1d
from networks.layers.linear import FullyConnected

KERNEL_SIZE = 9
LABEL_CHANNELS = 64


class ConvBlock(nn.Module):
    """Leaky ReLU of the local batch norm of a spectrally normalised convolution that keeps the width."""

    def __init__(self, channels: int, kernel_size: int, norm_eps: float):
        super().__init__()
        self.conv = SpectralConv1d(channels, channels, kernel_size)
        self.norm = LocalBatchNorm(channels, norm_eps)

    def forward(self, x: Tensor, update_norms: bool) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x, update_norms)), LEAKY_SLOPE)


class DiscriminatorHead(nn.Module):
    """One logit per patch from the features of one layer of the backbone.

    h = block_1(x);  h = (block_9(h) + h) / sqrt 2;  logit = conv(h), or with a label c: <conv(h), map(c)> / sqrt 64.

    Args:
        channels: width of the features.
        label_dim: width of the label; 0 for none.
        norm_eps: added to the variance in the local batch norms.
    """

    def __init__(self, channels: int, label_dim: int = 0, norm_eps: float = 1e-5):
        super().__init__()
        self.first = ConvBlock(channels, 1, norm_eps)
        self.residual = ConvBlock(channels, KERNEL_SIZE, norm_eps)
        self.logits = SpectralConv1d(channels, LABEL_CHANNELS if label_dim else 1, 1)
        self.label = FullyConnected(label_dim, LABEL_CHANNELS) if label_dim else None

    def forward(self, x: Tensor, label: Tensor | None = None, update_norms: bool = False) -> Tensor:
        """Features [B, C, L] and, for a conditional head, labels [B, label_dim] -> logits [B, 1, L]."""
        h = self.first(x, update_norms)
        h = (self.residual(h, update_norms) + h) / 2**0.5
        logits = self.logits(h, update_norms)
        if self.label is None:
            return logits
        assert label is not None, "a conditional head needs a label"
        projected = logits * self.label(label)[:, :, None]  # [B, 64, L]
        return projected.sum(dim=1, keepdim=True) / LABEL_CHANNELS**0.5
