"""Adversarial loss of the multi-scale PatchGAN (pix2pixHD, Wang et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.adversarial import FORMS, Judge, describe
from losses.config import PatchGANTermConfig
from losses.interfaces import DiscriminatorInputs, DiscriminatorLoss, Loss, LossInputs
from networks.interfaces import Verdict

SCALES = ("full", "half", "quarter")


class PatchGANLoss(Loss, DiscriminatorLoss):
    """Mean over the scales of a loss on their logit maps; the discriminator's is the sum of real and fake."""

    needs = frozenset({"fake"})
    group = "adversarial"

    def __init__(self, config: PatchGANTermConfig):
        super().__init__()
        self.form = FORMS[config.loss_type]

    def forward(self, inputs: LossInputs) -> Tensor:
        return _over_scales(self.form.generator, inputs.fake)

    def details(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Of each scale: mean of the logits, and mean sign of each image's mean logit."""
        return _describe_scales("fake", inputs.fake)

    def discriminator_loss(self, inputs: DiscriminatorInputs) -> Tensor:
        return sum(self._parts(inputs).values())

    def discriminator_details(self, inputs: DiscriminatorInputs) -> dict[str, Tensor]:
        """The two parts of the loss; of each scale what `details` gives, of both kinds; accuracy over the scales."""
        accuracies = [
            self.form.accuracy(fake, real)
            for fake, real in zip(_logits(inputs.fake), _logits(inputs.real), strict=True)
        ]
        return {
            **self._parts(inputs),
            **_describe_scales("fake", inputs.fake),
            **_describe_scales("real", inputs.real),
            "accuracy": torch.stack(accuracies).mean(),
        }

    def _parts(self, inputs: DiscriminatorInputs) -> dict[str, Tensor]:
        return {
            "fake_loss": _over_scales(self.form.on_fake, inputs.fake),
            "real_loss": _over_scales(self.form.on_real, inputs.real),
        }


def _logits(verdict: Verdict) -> list[Tensor]:
    return [layers[-1].float() for layers in verdict.patches]


def _over_scales(judge: Judge, verdict: Verdict) -> Tensor:
    return torch.stack([judge(logits) for logits in _logits(verdict)]).mean()


def _describe_scales(kind: str, verdict: Verdict) -> dict[str, Tensor]:
    return {
        f"{scale}/{name}": value
        for scale, logits in zip(SCALES, _logits(verdict), strict=True)
        for name, value in describe(kind, logits.flatten(1).mean(1)).items()
    }
