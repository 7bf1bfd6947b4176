"""Alignment of the latent with the features of the vision foundation model (VA-VAE's VF loss)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from common.errors import ShapeError
from losses.config import VFAlignmentConfig
from losses.interfaces import Loss, LossInputs


def vf_alignment_loss(
    projected: Tensor,
    features: Tensor,
    distmat_margin: float = 0.0,
    cos_margin: float = 0.0,
    distmat_weight: float = 1.0,
    cos_weight: float = 1.0,
) -> Tensor:
    """L = w_d mean relu(|cos(z_i, z_j) - cos(f_i, f_j)| - m_d) + w_c mean relu(1 - m_c - cos(z_i, f_i)).

    Args:
        projected: the latent in feature space, [B, D, h, w].
        features: frozen features, [B, D, H, W]; pooled to h x w if larger. No gradient flows into them.
        distmat_margin, cos_margin: m_d and m_c.
        distmat_weight, cos_weight: w_d and w_c.

    Returns: scalar, fp32.
    Raises: ShapeError if batch or channels differ.
    """
    if projected.shape[:2] != features.shape[:2]:
        raise ShapeError(
            f"latent in feature space {tuple(projected.shape)} and features {tuple(features.shape)}: "
            "batch and channels must be equal."
        )
    projected, features = projected.float(), features.detach().float()
    if features.shape[2:] != projected.shape[2:]:
        features = F.adaptive_avg_pool2d(features, projected.shape[2:])
    z, f = projected.flatten(2), features.flatten(2)  # [B, D, positions]
    z_hat, f_hat = F.normalize(z, dim=1), F.normalize(f, dim=1)
    similarity_gap = (z_hat.mT @ z_hat - f_hat.mT @ f_hat).abs()  # [B, positions, positions]
    pairwise = F.relu(similarity_gap - distmat_margin).mean()
    pointwise = F.relu(1 - cos_margin - F.cosine_similarity(f, z, dim=1)).mean()
    return distmat_weight * pairwise + cos_weight * pointwise


class VFAlignmentLoss(Loss):
    """`vf_alignment_loss` of the projected latent and the encoder's last layer."""

    needs = frozenset({"latent", "aligned_to"})
    group = "latent"

    def __init__(self, config: VFAlignmentConfig):
        super().__init__()
        self.options = {
            "distmat_margin": config.distmat_margin,
            "cos_margin": config.cos_margin,
            "distmat_weight": config.distmat_weight,
            "cos_weight": config.cos_weight,
        }

    def forward(self, inputs: LossInputs) -> Tensor:
        return vf_alignment_loss(inputs.latent.projected, inputs.aligned_to, **self.options)
