"""The objective: loss terms composed by name, each with its weight and its window of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from common.registry import import_object
from losses import LOSSES
from losses.config import MultiscaleConfig, TermConfig
from losses.interfaces import DiscriminatorInputs, DiscriminatorLoss, Group, Loss, LossInputs
from losses.schedule import Moment, in_window

Measure = Callable[[Any], Tensor]
Describe = Callable[[Any], dict[str, Tensor]]


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

    Raises: UserError if a term is not known, or its weights are missing.
    """

    def __init__(self, terms: Mapping[str, TermConfig | MultiscaleConfig]):
        super().__init__()
        self.terms = dict(terms)
        built: dict[str, Loss | DiscriminatorLoss] = {}
        for name, config in terms.items():
            built[name] = import_object(LOSSES[name].target)(config)
            _assert_needs_exist(built[name])
        self.losses = nn.ModuleDict(built)

    def __contains__(self, name: str) -> bool:
        return name in self.terms

    def names(self, group: Group) -> list[str]:
        """The tokenizer's terms of a group, whether they count at present or not."""
        return [name for name, loss in self.losses.items() if isinstance(loss, Loss) and loss.group == group]

    def discriminator_names(self) -> list[str]:
        """The terms of the discriminators' side, whether they count at present or not."""
        return [name for name, loss in self.losses.items() if isinstance(loss, DiscriminatorLoss)]

    def counts(self, name: str, at: Moment) -> bool:
        """Whether a term counts: its window is open, it does not wait, and no PatchGAN has taken its place."""
        if name not in self.terms or name in at.waiting or not in_window(self.terms[name], at.nimg):
            return False
        return not (self._gives_way_to_patchgan(name) and self.counts("patchgan", at))

    def _gives_way_to_patchgan(self, name: str) -> bool:
        if "patchgan" not in self or not self.terms["patchgan"].disable_reconstruction_when_patchgan:
            return False
        return name in self.names("reconstruction") or name in self.names("latent")

    def needs(self, field: str, at: Moment) -> bool:
        """Whether any term that counts reads this field of `LossInputs`."""
        return any(field in loss.needs for loss in self._counting(Loss, at).values())

    def discriminators_need(self, field: str, at: Moment) -> bool:
        """Whether any term that counts reads this field of `DiscriminatorInputs`."""
        return any(field in loss.discriminator_needs for loss in self._counting(DiscriminatorLoss, at).values())

    def _counting(self, side: type, at: Moment) -> dict[str, Any]:
        """The terms of the tokenizer's side (`Loss`) or the other (`DiscriminatorLoss`) that count."""
        return {name: loss for name, loss in self.losses.items() if isinstance(loss, side) and self.counts(name, at)}

    def reconstruction_terms(self, inputs: LossInputs, at: Moment) -> dict[str, Value]:
        """The terms that compare images with their targets; their weighted sum is the L_rec of the adaptive weight."""
        return self._evaluate("reconstruction", inputs, at)

    def adversarial_terms(self, inputs: LossInputs, at: Moment) -> dict[str, Value]:
        """The terms in which other networks judge the reconstruction."""
        return self._evaluate("adversarial", inputs, at)

    def latent_terms(self, inputs: LossInputs, at: Moment) -> dict[str, Value]:
        """The terms on the latent, and on what features are predicted from it."""
        return self._evaluate("latent", inputs, at)

    def _evaluate(self, group: Group, inputs: LossInputs, at: Moment) -> dict[str, Value]:
        return {
            name: self._value(name, loss, loss.details, inputs)
            for name, loss in self._counting(Loss, at).items()
            if loss.group == group
        }

    def discriminator_terms(self, inputs: DiscriminatorInputs, at: Moment) -> dict[str, Value]:
        """The terms of the discriminators' side."""
        return {
            name: self._value(name, loss.discriminator_loss, loss.discriminator_details, inputs)
            for name, loss in self._counting(DiscriminatorLoss, at).items()
        }

    def _value(self, name: str, measure: Measure, describe: Describe, inputs: Any) -> Value:
        with torch.no_grad():
            described = describe(inputs)
        return Value(measure(inputs), self.terms[name].weight, described)


def _assert_needs_exist(loss: Loss | DiscriminatorLoss) -> None:
    if isinstance(loss, Loss):
        assert loss.needs <= {entry.name for entry in fields(LossInputs)}, loss.needs
    if isinstance(loss, DiscriminatorLoss):
        assert loss.discriminator_needs <= {entry.name for entry in fields(DiscriminatorInputs)}


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
