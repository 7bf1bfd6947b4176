"""Rows of several safetensors files as one table; a row is read from disk when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import DataError, first_line

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Column:
    """What a tensor of the files has to be.

    Args:
        dtypes: names as safetensors writes them ("F32", "I64", ...).
        dimensions: number of dimensions, that of the rows included.
        same_shape: rows have one shape in all files.
    """

    dtypes: tuple[str, ...]
    dimensions: int
    same_shape: bool = True


class RowFiles:
    """The rows of all files, file after file. Copies in other processes open the files for themselves.

    Args:
        paths: at least one file, in order.
        columns: the tensors that every file must have.

    Raises: DataError that names the first file that cannot be read, lacks a tensor, holds one of another kind, has
        tensors with different numbers of rows, or differs in shape from the first file.
    """

    def __init__(self, paths: Sequence[Path], columns: Mapping[str, Column]):
        assert paths
        self.paths = list(paths)
        self._columns = dict(columns)
        self._handles: dict[int, Any] = {}
        self._process = os.getpid()
        self._shapes: dict[str, list[int]] = {}
        self._ends = np.cumsum([self._check(number) for number in range(len(paths))], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}, "_process": -1}

    def shape(self, column: str) -> tuple[int, ...]:
        """Shape of one row of a column whose rows have the same shape."""
        return tuple(self._shapes[column])

    def place(self, index: int) -> tuple[Path, int]:
        """The file that holds a row, and the row's number in it."""
        number, row = self._place(index)
        return self.paths[number], row

    def row(self, column: str, index: int) -> Tensor:
        """One row of a column."""
        number, row = self._place(index)
        return self._handle(number).get_slice(column)[row]

    def blocks(self, column: str, size: int = 256) -> Iterator[Tensor]:
        """All rows of a column in their order, at most `size` at a time."""
        for number in range(len(self.paths)):
            part = self._handle(number).get_slice(column)
            for start in range(0, part.get_shape()[0], size):
                yield part[start : start + size]

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def _handle(self, number: int) -> Any:
        if self._process != os.getpid():
            self._handles, self._process = {}, os.getpid()
        if number not in self._handles:
            self._handles[number] = _open(self.paths[number])
        return self._handles[number]

    def _check(self, number: int) -> int:
        """Number of rows of a file, once it is known to be as it should."""
        path, file = self.paths[number], self._handle(number)
        missing = [name for name in self._columns if name not in file.keys()]  # noqa: SIM118 (no mapping)
        if missing:
            raise DataError(
                f"{path}: holds the tensors {', '.join(file.keys()) or 'none'}; expected also {', '.join(missing)}."
            )
        rows: dict[str, int] = {}
        for name, column in self._columns.items():
            part = file.get_slice(name)
            shape, dtype = part.get_shape(), part.get_dtype()
            if dtype not in column.dtypes or len(shape) != column.dimensions:
                raise DataError(
                    f"{path}: {name}: found {dtype} of shape {shape}, expected {' or '.join(column.dtypes)} with "
                    f"{column.dimensions} dimensions."
                )
            if column.same_shape and self._shapes.setdefault(name, shape[1:]) != shape[1:]:
                raise DataError(
                    f"{path}: {name}: found rows of shape {shape[1:]}, but those of {self.paths[0]} have "
                    f"{self._shapes[name]}; the files are of different models. Keep one kind in the folder."
                )
            rows[name] = shape[0]
        if len(set(rows.values())) != 1:
            found = ", ".join(f"{name} {count}" for name, count in rows.items())
            raise DataError(f"{path}: its tensors have different numbers of rows ({found}); write it again.")
        return rows.popitem()[1]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path}: cannot be read as a safetensors file ({first_line(error)}); it is cut off, damaged or of another "
            "kind. Write it again or remove it."
        ) from error
