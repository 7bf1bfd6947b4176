"""Mapping network: the pooled latent, and a label if there is one -> one style vector w."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.distributed import all_reduce
from common.precision import full_precision
from networks.layers.linear import FullyConnected

LR_MULTIPLIER = 0.01
AVERAGE_DECAY = 0.995
CLASS_EMBEDDING = 1024


def unit_second_moment(x: Tensor) -> Tensor:
    """x / sqrt(mean_j x_j^2 + 1e-8), per row."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class MappingNetwork(nn.Module):
    """Two fully connected layers from the normalised pooled latent to x, with truncation towards the running mean.

    Unconditional: w = x. Conditional on a text: its normalised embedding is appended, w = [x, c / |c|]. Conditional on
    a class: an embedding of the class joins the pooled latent in front of the layers, and w = x.

    Args:
        n_in: width of the pooled latent.
        n_out: width of x.
        text_dim: width of the text embedding; 0 without.
        class_dim: number of classes; 0 without.
    """

    def __init__(self, n_in: int, n_out: int, text_dim: int = 0, class_dim: int = 0):
        super().__init__()
        assert not (text_dim and class_dim), "conditional on a text or on a class"
        self.w_dim = n_out + text_dim
        self.takes_text, self.takes_class = text_dim > 0, class_dim > 0
        if self.takes_class:
            self.embed = FullyConnected(class_dim, CLASS_EMBEDDING)
            n_in += CLASS_EMBEDDING
        self.mlp = nn.Sequential(
            FullyConnected(n_in, n_in, LR_MULTIPLIER, leaky=True), FullyConnected(n_in, n_out, LR_MULTIPLIER)
        )
        self.register_buffer("x_avg", torch.zeros(n_out))

    def forward(
        self, pooled: Tensor, label: Tensor | None = None, truncation_psi: float = 1.0, update_average: bool = False
    ) -> Tensor:
        """[B, n_in] -> w [B, w_dim], in fp32.

        Args:
            label: text embedding [B, text_dim] or one-hot class [B, class_dim], if conditional.
            truncation_psi: x is moved towards its running mean; 1 leaves it, 0 gives the mean.
            update_average: advance the running mean by the mean of this batch over all ranks.
        """
        with full_precision(pooled.device):
            x = unit_second_moment(pooled.float())
            if self.takes_class:
                x = torch.cat([x, unit_second_moment(self.embed(label.float()))], dim=1)
            x = self.mlp(x)
        if update_average:
            batch_mean = all_reduce(x.detach().mean(dim=0), "mean")
            self.x_avg.copy_(batch_mean.lerp(self.x_avg, AVERAGE_DECAY))
        if truncation_psi != 1:
            x = self.x_avg.lerp(x, truncation_psi)
        return torch.cat([x, F.normalize(label.float())], dim=1) if self.takes_text else x
