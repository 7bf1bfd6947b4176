"""The card of a model: a README.md that says what it is, what it was made from, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from networks.checkpoint.origin import Origin
from networks.encoders import FAMILIES
from networks.hub import is_model_id

LIBRARY = "vfm-vae"
PROTOCOL_SECTIONS = ("data", "equivariance", "losses", "discriminator", "optimizer", "training")

# Licences by the identifiers that the hub knows.
HUB_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0")


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model besides its shape and weights.

    Attributes:
        encoder: name, family, revision and fingerprint of the frozen encoder, as manifests keep them.
        nimg: images seen in training.
        origin: the weights that these were made from, if not trained from scratch here.
        licence: of the weights, if whoever saved them stated one.
        protocol: the configuration of the run, without places on somebody's machine.
        metrics: measured numbers by name; `protocol` among them says how each was measured.
    """

    encoder: Mapping[str, Any]
    nimg: int | None = None
    origin: Origin | None = None
    licence: str | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> ModelFacts:
        """What the manifest of a checkpoint or of a saved model says."""
        run = manifest.get("config") or {}
        return cls(
            encoder=manifest["encoder"],
            nimg=manifest["nimg"],
            origin=Origin.from_json(manifest.get("derived_from")),
            licence=manifest.get("licence"),
            protocol=_without_places({name: run[name] for name in PROTOCOL_SECTIONS if name in run}),
            metrics=manifest.get("metrics") or {},
        )

    def further(self) -> dict[str, Any]:
        """The entries of a manifest that only a saved model has."""
        return {"licence": self.licence, "config": dict(self.protocol), "metrics": dict(self.metrics)}

    def stated_licence(self) -> str | None:
        """That of the weights, else that of the weights that they were made from."""
        return self.licence or (self.origin.licence if self.origin else None)


def _without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values without the texts that are paths or addresses; nobody else has these."""
    kept = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            kept[name] = _without_places(value)
        elif not (isinstance(value, str) and ("/" in value or value.startswith("~"))):
            kept[name] = value
    return kept


@dataclass(frozen=True)
class CardText:
    """What a card says of a kind of model.

    Attributes:
        name: as the paper calls it.
        paper: its number on arXiv.
        tags: for the hub.
        about: what becomes of images, up to the size that the model was built for.
        use: a few lines of Python.
        latent: what is known of its latent; empty: nothing.
    """

    name: str
    paper: str
    tags: tuple[str, ...]
    about: str
    use: str
    latent: str = ""


TEMPLATE = """\
---
{front_matter}---

# {title}

A visual tokenizer: {about} after {name} ([arXiv:{paper}](https://arxiv.org/abs/{paper})).

## Use

```python
{use}
```

## Encoder

| | |
|---|---|
{encoder}

## Licence

{licence}

## Training

{training}

## Measured

{measured}
"""


def model_card(text: CardText, facts: ModelFacts, has_encoder: bool) -> str:
    """The text of the card, with the hub's metadata in front.

    Args:
        text: what the kind of model says of itself.
        facts: where the model comes from.
        has_encoder: whether the folder holds a copy of the encoder.
    """
    return TEMPLATE.format(
        front_matter=yaml.safe_dump(_metadata(text, facts), sort_keys=False, allow_unicode=True),
        title=f"{text.name} on {_encoder_name(facts)}",
        about=text.about,
        name=text.name,
        paper=text.paper,
        use=text.use,
        encoder=_rows(_encoder(facts, has_encoder)),
        licence=_licence(facts),
        training=_training(facts),
        measured=_measured(text, facts),
    )


def _metadata(text: CardText, facts: ModelFacts) -> dict[str, Any]:
    licence = facts.stated_licence()
    known = licence is not None and licence.lower() in HUB_LICENCES
    metadata: dict[str, Any] = {"license": licence.lower() if known else "other"}
    if not known:
        metadata["license_name"] = "see-below"
    metadata |= {"library_name": LIBRARY, "tags": list(text.tags)}
    if is_model_id(facts.encoder["vfm_name"]):
        metadata["base_model"] = facts.encoder["vfm_name"]
    return metadata


def _encoder_name(facts: ModelFacts) -> str:
    """The encoder's id on the hub, or the last part of its folder's path."""
    name = facts.encoder["vfm_name"]
    return name if is_model_id(name) else Path(name).name


def _encoder(facts: ModelFacts, has_encoder: bool) -> dict[str, Any]:
    encoder = facts.encoder
    return {
        "model": f"`{_encoder_name(facts)}`",
        "revision": encoder["revision"] or "not recorded",
        "family": encoder["family"],
        "licence": FAMILIES[encoder["family"]].licence,
        "SHA-256 of its weights": f"`{encoder['sha256']}`" if encoder["sha256"] else "not recorded",
        "in this folder": "a copy" if has_encoder else "no; it is loaded by its name",
    }


def _licence(facts: ModelFacts) -> str:
    stated = facts.stated_licence() or "not stated; ask whoever published them"
    text = f"Weights: {stated}."
    if facts.origin is not None:
        text += f" They derive from {facts.origin}."
    return f"{text} The encoder has a licence of its own (above). The code is Apache-2.0."


def _training(facts: ModelFacts) -> str:
    seen = "an unrecorded number of" if facts.nimg is None else f"{facts.nimg:,}"
    text = f"The weights have seen {seen} images."
    if not facts.protocol:
        return f"{text} The configuration of the run is not recorded."
    return f"{text} Configuration of the run:\n\n```yaml\n{yaml.safe_dump(dict(facts.protocol), sort_keys=False)}```"


def _measured(text: CardText, facts: ModelFacts) -> str:
    parts = [text.latent] if text.latent else []
    numbers = {name: value for name, value in facts.metrics.items() if isinstance(value, int | float)}
    if numbers:
        parts.append("| Metric | Value |\n|---|---|\n" + _rows({k: f"{v:g}" for k, v in numbers.items()}))
        parts += [f"- {name}: {text}" for name, text in facts.metrics.get("protocol", {}).items()]
    else:
        parts.append("No metric of reconstruction is recorded.")
    return "\n\n".join(parts)


def _rows(values: Mapping[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in values.items())
