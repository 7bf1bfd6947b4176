"""Mapping network: the pooled latent -> one style vector w."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.distributed import all_reduce
from common.precision import full_precision
from networks.layers.linear import FullyConnected

LR_MULTIPLIER = 0.01
AVERAGE_DECAY = 0.995


def unit_second_moment(x: Tensor) -> Tensor:
    """x / sqrt(mean_j x_j^2 + 1e-8), per row."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class MappingNetwork(nn.Module):
    """Two fully connected layers from the normalised pooled latent to w, with truncation towards the running mean.

    Args:
        n_in: width of the pooled latent.
        w_dim: width of w.
    """

    def __init__(self, n_in: int, w_dim: int):
        super().__init__()
        self.w_dim = w_dim
        self.mlp = nn.Sequential(
            FullyConnected(n_in, n_in, LR_MULTIPLIER, leaky=True), FullyConnected(n_in, w_dim, LR_MULTIPLIER)
        )
        self.register_buffer("x_avg", torch.zeros(w_dim))

    def forward(self, pooled: Tensor, truncation_psi: float = 1.0, update_average: bool = False) -> Tensor:
        """[B, n_in] -> w [B, w_dim], in fp32.

        Args:
            truncation_psi: w is moved towards the running mean; 1 leaves it, 0 gives the mean.
            update_average: advance the running mean by the mean of this batch over all ranks.
        """
        with full_precision(pooled.device):
            w = self.mlp(unit_second_moment(pooled.float()))
        if update_average:
            batch_mean = all_reduce(w.detach().mean(dim=0), "mean")
            self.x_avg.copy_(batch_mean.lerp(self.x_avg, AVERAGE_DECAY))
        if truncation_psi != 1:
            w = self.x_avg.lerp(w, truncation_psi)
        return w
