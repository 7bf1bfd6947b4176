"""What a prefetch stores for each image, and in which files: the interface of all formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from common.errors import DataError
from evaluation.prefetch.parts import Part

Record = Mapping[str, Any]
"""What is kept of a finished part, as JSON: `part`, `rows`, `skips`, `statistics`, and what its writer says."""


@dataclass(frozen=True)
class Batch:
    """Images of one batch as they were read.

    Args:
        keys, labels: sample key and class index of each.
        images: uint8 crops [B, 3, R, R], on the CPU.
    """

    keys: Sequence[str]
    labels: Sequence[int]
    images: Tensor


@dataclass(frozen=True)
class Encoded:
    """What is stored of a batch of images, on the CPU.

    Args:
        columns: name -> one row per image.
        latents: what statistics are taken of, each [B, C, h, w]; empty where there are none.
    """

    columns: dict[str, Tensor]
    latents: tuple[Tensor, ...] = ()

    def first(self, count: int) -> Encoded:
        """Of the first so many images."""
        columns = {name: column[:count] for name, column in self.columns.items()}
        return Encoded(columns, tuple(z[:count] for z in self.latents))


class PartWriter(Protocol):
    """Takes the images of one part, batch by batch."""

    def add(self, batch: Batch, encoded: Encoded) -> None:
        """Take in a batch."""
        ...

    def finish(self) -> dict[str, Any]:
        """Bring everything to disk; returns what the part's record says of it, with `rows` among it."""
        ...


class PrefetchFormat(ABC):
    """What is stored for each image."""

    name: str

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the stored values besides the images, the crop and the weights."""

    def identity_of(self, model: nn.Module) -> dict[str, Any]:
        """What the index says besides of the model that encodes. Raises: UserError if it is of no use here."""
        return {}

    def crop_side(self, resolution: int) -> int:
        """Side R in pixels of the centre crops that `encode` is given, for what is to be encoded at a resolution."""
        return resolution

    @abstractmethod
    def encode(self, model: nn.Module, images: Tensor, keys: Sequence[str]) -> Encoded:
        """What to store of images: uint8 [B, 3, R, R] on the model's device."""

    @abstractmethod
    def open_part(self, folder: Path, part: Part) -> PartWriter:
        """A writer for a part."""

    @abstractmethod
    def is_whole(self, folder: Path, record: Record) -> bool:
        """Whether the files that a part's record names are there."""

    @abstractmethod
    def finish(self, folder: Path, records: Sequence[Record]) -> dict[str, Any]:
        """Write what there is once for all parts; returns what the index says of it and of the parts' files."""

    def check_key(self, key: str) -> None:
        """Raise DataError for a sample key that cannot be stored."""
        try:
            key.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"sample {key!r}: its key is not UTF-8; rename the sample.") from error
