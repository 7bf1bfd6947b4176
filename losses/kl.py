"""KL divergence of the posterior from the standard normal."""

from __future__ import annotations

from torch import Tensor

from losses.config import TermConfig
from losses.interfaces import Loss, LossInputs


class KLLoss(Loss):
    """mean over the batch of KL(q || N(0, I)), summed over the latent (so it grows with the latent's size)."""

    needs = frozenset({"latent"})
    group = "latent"

    def __init__(self, config: TermConfig):
        super().__init__()

    def forward(self, inputs: LossInputs) -> Tensor:
        return inputs.latent.posterior.kl().mean()
