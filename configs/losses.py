"""The section `losses:` of a system, and the rules that every system's has. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, create_model

from common.config import Relation, StrictModel
from losses import LOSSES, losses_of


def losses_section(system: str) -> type[StrictModel]:
    """One optional field per loss that is registered for a system: a YAML composes the objective by naming them.

    A term of another system is refused with the name of that system.
    """
    elsewhere = {
        name: f"belongs to the system {' or '.join(entry.systems)}, not to {system}; remove the term."
        for name, entry in LOSSES.items()
        if system not in entry.systems
    }
    section = create_model(
        "LossesConfig",
        __base__=StrictModel,
        __doc__="The terms of the objective, by name; a term that is not named does not exist.",
        **{
            name: (entry.config | None, Field(None, description=entry.summary))
            for name, entry in losses_of(system).items()
        },
    )
    section.ELSEWHERE = elsewhere
    return section


def enabled_losses(section: StrictModel) -> dict[str, StrictModel]:
    """The terms of a `losses:` section that take part in the run, by name."""
    named = {name: getattr(section, name) for name in type(section).model_fields}
    return {name: term for name, term in named.items() if term is not None and term.enabled}


def _no_loss(c: Any) -> str | None:
    if not enabled_losses(c.losses):
        return f"no loss has a weight above 0; name at least one of {', '.join(type(c.losses).model_fields)}."
    return None


def _windows(name: str) -> Relation:
    def check(c: Any) -> str | None:
        term = getattr(c.losses, name)
        if term is None or term.end_kimg is None or term.end_kimg > term.start_kimg:
            return None
        return f"end_kimg {term.end_kimg:g} is not after start_kimg {term.start_kimg:g}; the term would never count."

    return Relation((f"losses.{name}",), check)


def needs_switch(loss: str, switch: str) -> Relation:
    """A term judges by a discriminator, which must be there."""

    def check(c: Any) -> str | None:
        term = getattr(c.losses, loss)
        if term and term.enabled and not getattr(c.discriminator, switch):
            return f"found {term.weight:g}, which needs discriminator.{switch}: true."
        return None

    return Relation((f"losses.{loss}.weight", f"discriminator.{switch}"), check)


def switch_is_used(switch: str, terms: Sequence[str]) -> Relation:
    """A discriminator that no term uses would be built, and never trained or heard."""

    def check(c: Any) -> str | None:
        named = [getattr(c.losses, term) for term in terms]
        if not getattr(c.discriminator, switch) or any(term and term.enabled for term in named):
            return None
        return f"true, but nothing uses it; give losses.{' or losses.'.join(terms)} a weight above 0, or set it false."

    return Relation((f"discriminator.{switch}", *(f"losses.{term}" for term in terms)), check)


def _one_discriminator(c: Any) -> str | None:
    """VFMTok's adversarial term is a game with one discriminator; without the term none is built."""
    term, found = c.losses.vfmtok_gan, [switch for switch in DISCRIMINATORS if getattr(c.discriminator, switch)]
    wanted = 1 if term and term.enabled else 0
    if len(found) == wanted:
        return None
    true = " and ".join(f"discriminator.{switch}" for switch in found) or "no discriminator"
    if wanted == 0:
        return f"has no weight above 0, but {true} is true, which only this term uses; set it false, or name the term."
    return f"found {term.weight:g} with {true}; set exactly one of discriminator.{', '.join(DISCRIMINATORS)} true."


DISCRIMINATORS = ("use_stylegan_t_discriminator", "use_patchgan_discriminator", "use_stylegan2_discriminator")
ONE_DISCRIMINATOR = Relation(
    ("losses.vfmtok_gan", *(f"discriminator.{switch}" for switch in DISCRIMINATORS)), _one_discriminator
)


def loss_relations(system: str) -> tuple[Relation, ...]:
    """Rules of the section by itself: there is a term, and every window opens before it closes."""
    return (Relation(("losses",), _no_loss), *(_windows(name) for name in losses_of(system)))
