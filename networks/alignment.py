"""Projection of the latent to the feature space of the encoder's last layer, for the VF loss (VA-VAE)."""

from __future__ import annotations

from torch import Tensor, nn

from networks.compression import initialise_adapter


class AlignmentHead(nn.Module):
    """1x1 convolution without bias: z [B, C, h, w] -> [B, D, h, w]."""

    def __init__(self, channels: int, feature_channels: int):
        super().__init__()
        self.projection = nn.Conv2d(channels, feature_channels, 1, bias=False)
        initialise_adapter(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.projection(z)
