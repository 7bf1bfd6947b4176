"""The objective: loss terms composed by name, each with its weight and its window of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.registry import import_object
from losses import LOSSES
from losses.config import MultiscaleConfig, TermConfig
from losses.interfaces import Loss, LossInputs


@dataclass(frozen=True)
class Value:
    """A term's value in one step.

    Attributes:
        loss: the unweighted loss.
        weight: its factor in the total.
    """

    loss: Tensor
    weight: float | Tensor


class Objective(nn.Module):
    """All terms of a run.

    The terms that compare images and those on the latent are computed apart: the gradient of the first reaches
    the latent through the decoder, and the adaptive VF weight needs it there before the second can be weighted.

    Args:
        terms: configuration of each enabled term, by registered name.

    Raises: UserError if a term is not known or not built, or its weights are missing.
    """

    def __init__(self, terms: Mapping[str, TermConfig | MultiscaleConfig]):
        super().__init__()
        self.terms = dict(terms)
        known = {field.name for field in fields(LossInputs)}
        built: dict[str, Loss] = {}
        for name, config in terms.items():
            target = LOSSES[name].target
            if target is None:
                raise UserError(f"losses.{name}: this loss is not built yet.")
            built[name] = import_object(target)(config)
            assert built[name].needs <= known, f"losses.{name} needs {built[name].needs - known}"
        self.losses = nn.ModuleDict(built)

    def __contains__(self, name: str) -> bool:
        return name in self.terms

    def needs(self, field: str) -> bool:
        """Whether any term reads this field of the inputs."""
        return any(field in loss.needs for loss in self.losses.values())

    def image_terms(self, inputs: LossInputs, nimg: int) -> dict[str, Value]:
        """Values of the terms that compare images, after `nimg` images of training."""
        return self._evaluate(inputs, nimg, compares_images=True)

    def latent_terms(self, inputs: LossInputs, nimg: int) -> dict[str, Value]:
        """Values of the terms on the latent."""
        return self._evaluate(inputs, nimg, compares_images=False)

    def _evaluate(self, inputs: LossInputs, nimg: int, compares_images: bool) -> dict[str, Value]:
        return {
            name: Value(loss(inputs), self.terms[name].weight)
            for name, loss in self.losses.items()
            if loss.compares_images == compares_images and in_window(self.terms[name], nimg)
        }

    def details(self, values: Mapping[str, Value]) -> dict[str, Tensor]:
        """Further values of the terms that were just evaluated, named `<term>/<detail>`."""
        return {f"{name}/{key}": v for name in values for key, v in self.losses[name].details().items()}


def in_window(config: TermConfig | MultiscaleConfig, nimg: int) -> bool:
    """Whether a term counts: 1000 start_kimg <= nimg < 1000 end_kimg. Outside it is not computed at all."""
    return 1000 * config.start_kimg <= nimg and (config.end_kimg is None or nimg < 1000 * config.end_kimg)


def total(values: Mapping[str, Value], touching: Sequence[Tensor]) -> Tensor:
    """Weighted sum of the terms.

    Args:
        touching: outputs that stay in the graph with weight 0, whatever the terms read, so that every parameter
            behind them gets a gradient (zero rather than none) in every step.
    """
    anchor = torch.stack([output.sum() for output in touching]).sum() * 0.0
    return anchor + sum(value.loss * value.weight for value in values.values())
