"""Adaptive weight of the VF loss: balances two gradients at the last layer before the latent (VA-VAE)."""

from __future__ import annotations

from torch import Tensor


def adaptive_weight(reconstruction_gradient: Tensor, alignment_gradient: Tensor) -> Tensor:
    """lambda = clamp(||g_rec|| / (||g_vf|| + 1e-4), 0, 1e8), detached; Frobenius norms of this rank's micro-batch."""
    ratio = reconstruction_gradient.norm() / (alignment_gradient.norm() + 1e-4)
    return ratio.clamp(0, 1e8).detach()
