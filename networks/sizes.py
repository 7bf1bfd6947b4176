"""Networks whose size has a name that stands for several keys. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field

from common.config import StrictModel
from common.errors import ConfigError
from common.registry import closest

SizeType = TypeVar("SizeType")


def size_keys(size: type) -> tuple[str, ...]:
    """The keys that say how large a network is: the name first, then the fields of the size."""
    return ("model_type", *(field.name for field in fields(size)))


class NamedSizeConfig(StrictModel, Generic[SizeType]):
    """A configuration that names its size, or gives the keys of the size one by one; it declares these itself.

    Attributes:
        SIZE: a dataclass; each of its fields is a key.
        SIZES: what the names stand for.
    """

    SIZE: ClassVar[type]
    SIZES: ClassVar[Mapping[str, Any]]

    model_type: str | None = Field(None, description="Named size; null: the keys of the size are given.")

    def size(self) -> SizeType:
        """The size, by its name or its keys.

        Raises: ConfigError if it is not known.
        """
        if problem := self.size_problem():
            raise ConfigError(f"model_type: {problem}")
        return self.SIZES[self.model_type] if self.model_type is not None else self.SIZE(**self._given())

    def size_problem(self) -> str | None:
        """What keeps the size from being known, in words, or None."""
        given = self._given()
        if self.model_type is None:
            missing = [name for name, value in given.items() if value is None]
            if missing:
                return f"gives no size, and neither do the keys {', '.join(missing)}; name a size or give all of them."
            return None
        if self.model_type not in self.SIZES:
            return (
                f"found {self.model_type!r}. Closest: {closest(self.model_type, self.SIZES)}. Known: "
                f"{', '.join(self.SIZES)}; null takes the size from its keys."
            )
        named = self.SIZES[self.model_type]
        for name, value in given.items():
            if value not in (None, getattr(named, name)):
                return (
                    f"{self.model_type} has {name} {getattr(named, name)}, but {name} is {value}; leave that key out, "
                    "or set model_type to null and give all keys of the size."
                )
        return None

    def _given(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self.SIZE)}
