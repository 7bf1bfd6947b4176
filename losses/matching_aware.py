"""Matching-aware loss of a label-conditional discriminator (Reed et al. 2016)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from losses.config import TermConfig
from losses.interfaces import DiscriminatorInputs, DiscriminatorLoss


class MatchingAwareLoss(DiscriminatorLoss):
    """mean(softplus(l(real, wrong label)) + softplus(l(fake, wrong label))): a wrong label is not real either."""

    discriminator_needs = frozenset({"fake_shuffled", "real_shuffled"})

    def __init__(self, config: TermConfig):
        super().__init__()

    def discriminator_loss(self, inputs: DiscriminatorInputs) -> Tensor:
        real, fake = inputs.real_shuffled.projected.float(), inputs.fake_shuffled.projected.float()
        return (F.softplus(real) + F.softplus(fake)).mean()
