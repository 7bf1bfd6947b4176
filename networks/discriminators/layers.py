"""Layers of the discriminators: spectrally normalised convolution and local batch normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ShapeError
from networks.config import LOCAL_BATCH, local_groups

LEAKY_SLOPE = 0.2


class SpectralConv1d(nn.Module):
    """Circular 1-D convolution whose weight is divided by an estimate of its largest singular value.

    W = weight_orig as a matrix [out, in * k];  sigma = u^T W v, with v <- W^T u and u <- W v, both normalised, once per
    forward pass that asks for it (power iteration). u and v are buffers and depend on no data. A new layer starts from
    a converged estimate.

    Args:
        n_in, n_out: channels.
        kernel_size: odd; the length is kept.
    """

    def __init__(self, n_in: int, n_out: int, kernel_size: int):
        super().__init__()
        fresh = nn.Conv1d(n_in, n_out, kernel_size)
        self.weight_orig, self.bias = fresh.weight, fresh.bias
        self.reach = kernel_size // 2
        self.register_buffer("weight_u", F.normalize(torch.randn(n_out), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(n_in * kernel_size), dim=0))
        if not self.weight_orig.is_meta:
            for _ in range(10):
                self._iterate()

    def forward(self, x: Tensor, update_norms: bool = False) -> Tensor:
        """[B, C_in, L] -> [B, C_out, L].

        Args:
            update_norms: advance the power iteration by one step first.
        """
        if update_norms:
            self._iterate()
        # Copies: another forward pass may advance the buffers before this one's backward pass reads them.
        u, v = self.weight_u.clone(), self.weight_v.clone()
        weight = self.weight_orig / torch.dot(u, self.weight_orig.flatten(1) @ v)
        if self.reach:
            x = F.pad(x, (self.reach, self.reach), mode="circular")
        return F.conv1d(x, weight, self.bias)

    @torch.no_grad()
    def _iterate(self) -> None:
        matrix = self.weight_orig.flatten(1)
        self.weight_v.copy_(F.normalize(matrix.T @ self.weight_u, dim=0))
        self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0))


class LocalBatchNorm(nn.Module):
    """Batch normalisation over groups of at most 8 consecutive samples, the same in training and evaluation.

    Mean and biased variance are those of the group's samples and positions, per channel; no running statistics. So the
    result of a sample depends on who shares its group, but not on the number of ranks.

    Args:
        channels: of the input.
        eps: added to the variance.

    Raises: ShapeError if the batch cannot be cut into equal groups.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        batch, channels = x.shape[:2]
        groups = local_groups(batch)
        if groups is None:
            raise ShapeError(
                f"discriminator: found a batch of {batch} images, which cannot be cut into equal groups of at most "
                f"{LOCAL_BATCH}; give at most {LOCAL_BATCH} or a multiple of {LOCAL_BATCH} images."
            )
        # Each group's channels stand side by side, so that one kernel normalises all groups.
        grouped = x.unflatten(0, (groups, batch // groups)).transpose(0, 1).flatten(1, 2)  # [B/G, G*C, ...]
        weight, bias = self.weight.repeat(groups), self.bias.repeat(groups)
        y = F.batch_norm(grouped, None, None, weight, bias, training=True, eps=self.eps)
        return y.unflatten(1, (groups, channels)).transpose(0, 1).flatten(0, 1)
