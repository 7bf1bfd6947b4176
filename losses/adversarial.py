"""Adversarial losses on logits: hinge, least squares, cross-entropy. Higher logits mean "real"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Judge = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AdversarialForm:
    """The losses of one game, each from logits of any shape to a scalar.

    Attributes:
        on_real: the discriminator's loss on real images.
        on_fake: the discriminator's loss on reconstructions.
        generator: the tokenizer's loss on reconstructions.
        boundary: logits above it call an image real.
    """

    on_real: Judge
    on_fake: Judge
    generator: Judge
    boundary: float

    def accuracy(self, fake: Tensor, real: Tensor) -> Tensor:
        """Share of logits on the right side of the boundary, the two kinds weighing the same."""
        right = (real > self.boundary).float().mean() + (fake < self.boundary).float().mean()
        return right / 2


def _towards_one(logits: Tensor) -> Tensor:
    return (logits - 1).square().mean()


def _negative_log_likelihood(logits: Tensor) -> Tensor:
    """Cross-entropy with the target 1."""
    return F.softplus(-logits).mean()


FORMS: dict[str, AdversarialForm] = {
    "hinge": AdversarialForm(
        on_real=lambda logits: F.relu(1 - logits).mean(),
        on_fake=lambda logits: F.relu(1 + logits).mean(),
        generator=lambda logits: -logits.mean(),
        boundary=0.0,
    ),
    "mse": AdversarialForm(
        on_real=_towards_one,
        on_fake=lambda logits: logits.square().mean(),
        generator=_towards_one,
        boundary=0.5,
    ),
    "bce": AdversarialForm(
        on_real=_negative_log_likelihood,
        on_fake=lambda logits: F.softplus(logits).mean(),
        generator=_negative_log_likelihood,
        boundary=0.0,
    ),
}


def describe(kind: str, logits: Tensor) -> dict[str, Tensor]:
    """`<kind>_scores` and `<kind>_signs`: the mean of the logits and of their signs, for the log."""
    return {f"{kind}_scores": logits.mean(), f"{kind}_signs": torch.sign(logits).mean()}
