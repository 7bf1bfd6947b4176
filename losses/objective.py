"""The objective: loss terms composed by name, each with its weight and its window of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.registry import import_object
from losses import LOSSES
from losses.config import MultiscaleConfig, TermConfig
from losses.interfaces import DiscriminatorInputs, DiscriminatorLoss, Group, Loss, LossInputs
from losses.schedule import Moment, in_window


@dataclass(frozen=True)
class Value:
    """A term's value in one step.

    Attributes:
        loss: the unweighted loss.
        weight: its factor in the total.
        details: further values for the log, by name; no gradient.
    """

    loss: Tensor
    weight: float | Tensor
    details: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """All terms of a run: what the tokenizer is trained on, in three groups, and what the discriminators are.

    The groups are computed apart. The gradient of the reconstruction terms reaches the latent through the decoder, and
    the adaptive VF weight needs it there, without the adversarial terms, before the latent terms can be weighted.

    Terms that do not count at a moment are not computed at all.

    Args:
        terms: configuration of each enabled term, by registered name.

    Raises: UserError if a term is not known or not built, or its weights are missing.
    """

    def __init__(self, terms: Mapping[str, TermConfig | MultiscaleConfig]):
        super().__init__()
        self.terms = dict(terms)
        built: dict[str, Loss | DiscriminatorLoss] = {}
        for name, config in terms.items():
            target = LOSSES[name].target
            if target is None:
                raise UserError(f"losses.{name}: this loss is not built yet.")
            built[name] = import_object(target)(config)
            _check_needs(name, built[name])
        self.losses = nn.ModuleDict(built)

    def __contains__(self, name: str) -> bool:
        return name in self.terms

    def counts(self, name: str, at: Moment) -> bool:
        """Whether a term counts: its window is open, it does not wait, and no PatchGAN has taken its place."""
        if name not in self.terms or name in at.waiting or not in_window(self.terms[name], at.nimg):
            return False
        return not (self._gives_way_to_patchgan(name) and self.counts("patchgan", at))

    def _gives_way_to_patchgan(self, name: str) -> bool:
        loss = self.losses[name]
        is_for_images = isinstance(loss, Loss) and loss.group != "adversarial"
        return is_for_images and "patchgan" in self and self.terms["patchgan"].disable_reconstruction_when_patchgan

    def needs(self, field: str, at: Moment) -> bool:
        """Whether any term that counts reads this field of `LossInputs`."""
        return any(
            isinstance(loss, Loss) and field in loss.needs and self.counts(name, at)
            for name, loss in self.losses.items()
        )

    def discriminators_need(self, field: str, at: Moment) -> bool:
        """Whether any term that counts reads this field of `DiscriminatorInputs`."""
        return any(
            isinstance(loss, DiscriminatorLoss) and field in loss.discriminator_needs and self.counts(name, at)
            for name, loss in self.losses.items()
        )

    def reconstruction_terms(self, inputs: LossInputs, at: Moment) -> dict[str, Value]:
        """The terms that compare images with their targets; their weighted sum is the L_rec of the adaptive weight."""
        return self._evaluate("reconstruction", inputs, at)

    def adversarial_terms(self, inputs: LossInputs, at: Moment) -> dict[str, Value]:
        """The terms in which other networks judge the reconstruction."""
        return self._evaluate("adversarial", inputs, at)

    def latent_terms(self, inputs: LossInputs, at: Moment) -> dict[str, Value]:
        """The terms on the latent."""
        return self._evaluate("latent", inputs, at)

    def _evaluate(self, group: Group, inputs: LossInputs, at: Moment) -> dict[str, Value]:
        return {
            name: Value(loss(inputs), self.terms[name].weight, _without_gradient(loss.details, inputs))
            for name, loss in self.losses.items()
            if isinstance(loss, Loss) and loss.group == group and self.counts(name, at)
        }

    def discriminator_terms(self, inputs: DiscriminatorInputs, at: Moment) -> dict[str, Value]:
        """The terms of the discriminators' side."""
        return {
            name: Value(
                loss.discriminator_loss(inputs),
                self.terms[name].weight,
                _without_gradient(loss.discriminator_details, inputs),
            )
            for name, loss in self.losses.items()
            if isinstance(loss, DiscriminatorLoss) and self.counts(name, at)
        }


def _check_needs(name: str, loss: Loss | DiscriminatorLoss) -> None:
    for kind, attribute, record in (
        (Loss, "needs", LossInputs),
        (DiscriminatorLoss, "discriminator_needs", DiscriminatorInputs),
    ):
        needed = getattr(loss, attribute) if isinstance(loss, kind) else frozenset()
        unknown = needed - {entry.name for entry in fields(record)}
        assert not unknown, f"losses.{name} needs {unknown}"


@torch.no_grad()
def _without_gradient(describe: Callable[[Any], dict[str, Tensor]], inputs: Any) -> dict[str, Tensor]:
    return describe(inputs)


def details(values: Mapping[str, Value]) -> dict[str, Tensor]:
    """Further values of all terms, named `<term>/<detail>`."""
    return {f"{name}/{key}": detail for name, value in values.items() for key, detail in value.details.items()}


def total(values: Mapping[str, Value], touching: Sequence[Tensor]) -> Tensor:
    """Weighted sum of the terms.

    Args:
        touching: outputs that stay in the graph with weight 0, whatever the terms read, so that every parameter
            behind them gets a gradient (zero rather than none) in every step.
    """
    anchor = torch.stack([output.sum() for output in touching]).sum() * 0.0
    return anchor + sum(value.loss * value.weight for value in values.values())
