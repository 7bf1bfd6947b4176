"""Where weights came from that were not trained from scratch here, and under which licence. It goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# What is recorded of a reference file whose licence nobody states.
UNKNOWN_LICENCE = "unknown; the released VFM-VAE weights are non-commercial (check their terms)"
UNSTATED_LICENCE = "unknown; check the terms of the file"  # of other models


@dataclass(frozen=True)
class Origin:
    """The weights that others were made from, by conversion or by training on.

    Attributes:
        source: file that they were first read from.
        licence: under which they are.
    """

    source: str
    licence: str

    def __str__(self) -> str:
        return f"{self.source}, licence: {self.licence}"

    def to_json(self) -> dict[str, str]:
        """As a manifest keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Origin | None:
        """The inverse of `to_json`; None for anything else, e.g. where nothing is recorded."""
        if not isinstance(values, Mapping) or not all(isinstance(values.get(k), str) for k in ("source", "licence")):
            return None
        return cls(values["source"], values["licence"])
