"""Adversarial loss of VFMTok (arXiv 2507.08441), whose two sides choose their forms apart."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.adversarial import FORMS, Judge, describe
from losses.config import VFMTokGANTermConfig
from losses.interfaces import DiscriminatorInputs, DiscriminatorLoss, Loss, LossInputs
from networks.interfaces import Verdict

# By their published names. The non-saturating loss of Goodfellow et al. (2014) is the cross-entropy on both sides.
DISCRIMINATOR_FORMS = {"hinge": FORMS["hinge"], "vanilla": FORMS["bce"], "non-saturating": FORMS["bce"]}
GENERATOR_FORMS = {"softplus_g_loss": FORMS["bce"], "hinge": FORMS["hinge"], "non-saturating": FORMS["bce"]}


class VFMTokGANLoss(Loss, DiscriminatorLoss):
    """Discriminator: (on_fake(l(fake)) + on_real(l(real))) / 2. Tokenizer: generator(l(fake)).

    l are all logits of the one discriminator that the run has; the scales of a PatchGAN weigh the same.
    """

    needs = frozenset({"fake"})
    group = "adversarial"

    def __init__(self, config: VFMTokGANTermConfig):
        super().__init__()
        self.form = DISCRIMINATOR_FORMS[config.disc_loss]
        self.generator_loss = GENERATOR_FORMS[config.gen_loss].generator

    def forward(self, inputs: LossInputs) -> Tensor:
        return _over_maps(self.generator_loss, inputs.fake)

    def details(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Mean and mean sign of the logits."""
        return describe("fake", _all_logits(inputs.fake))

    def discriminator_loss(self, inputs: DiscriminatorInputs) -> Tensor:
        return sum(self._parts(inputs).values())

    def discriminator_details(self, inputs: DiscriminatorInputs) -> dict[str, Tensor]:
        """The two parts of the loss; mean and mean sign of the logits; accuracy."""
        fake, real = _all_logits(inputs.fake), _all_logits(inputs.real)
        return {
            **self._parts(inputs),
            **describe("fake", fake),
            **describe("real", real),
            "accuracy": self.form.accuracy(fake, real),
        }

    def _parts(self, inputs: DiscriminatorInputs) -> dict[str, Tensor]:
        return {
            "fake_loss": _over_maps(self.form.on_fake, inputs.fake) / 2,
            "real_loss": _over_maps(self.form.on_real, inputs.real) / 2,
        }


def _over_maps(judge: Judge, verdict: Verdict) -> Tensor:
    return torch.stack([judge(logits.float()) for logits in verdict.logits()]).mean()


def _all_logits(verdict: Verdict) -> Tensor:
    return torch.cat([logits.flatten().float() for logits in verdict.logits()])
