"""Adversarial loss of the projected discriminator (StyleGAN-T, Sauer et al. 2023)."""

from __future__ import annotations

from torch import Tensor

from losses.adversarial import FORMS, describe
from losses.config import StyleGANTTermConfig
from losses.interfaces import DiscriminatorInputs, DiscriminatorLoss, Loss, LossInputs


class StyleGANTLoss(Loss, DiscriminatorLoss):
    """Hinge loss over all logits l of all heads.

    Discriminator: mean relu(1 + l(fake)) + mean relu(1 - l(real)). Tokenizer: -mean l(fake).
    """

    needs = frozenset({"fake"})
    group = "adversarial"
    form = FORMS["hinge"]

    def __init__(self, config: StyleGANTTermConfig):
        super().__init__()

    def forward(self, inputs: LossInputs) -> Tensor:
        return self.form.generator(inputs.fake.projected.float())

    def details(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Mean and mean sign of the logits."""
        return describe("fake", inputs.fake.projected.float())

    def discriminator_loss(self, inputs: DiscriminatorInputs) -> Tensor:
        return sum(self._parts(inputs).values())

    def discriminator_details(self, inputs: DiscriminatorInputs) -> dict[str, Tensor]:
        """The two parts of the loss; mean and mean sign of the logits; accuracy."""
        fake, real = inputs.fake.projected.float(), inputs.real.projected.float()
        return {
            **self._parts(inputs),
            **describe("fake", fake),
            **describe("real", real),
            "accuracy": self.form.accuracy(fake, real),
        }

    def _parts(self, inputs: DiscriminatorInputs) -> dict[str, Tensor]:
        return {
            "fake_loss": self.form.on_fake(inputs.fake.projected.float()),
            "real_loss": self.form.on_real(inputs.real.projected.float()),
        }
