"""Names to lazily imported objects, with a suggestion when a name is not known."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from common.errors import UserError


def closest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that is spelt most like `name`, or None when there is none to suggest."""
    candidates = sorted(set(candidates))
    match = difflib.get_close_matches(str(name), candidates, n=1, cutoff=0.0)
    return match[0] if match else None


def import_object(target: str) -> Any:
    """Import `package.module:Name`."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Registry(Mapping[str, Any]):
    """A mapping whose unknown keys raise an error that lists the known ones and the closest of them.

    Args:
        kind: what the entries are, for messages ("encoder family").
        entries: name -> anything; what an entry means is up to the package that owns the registry.
    """

    def __init__(self, kind: str, entries: dict[str, Any]):
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            raise UserError(
                f"{self.kind} {name!r} is not known. Closest: {closest(name, self._entries)}. "
                f"Known: {', '.join(self._entries)}."
            )
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
