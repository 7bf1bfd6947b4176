"""Arrays in .npz files that may be larger than memory: read row by row, written row by row."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataError, first_line
from common.files import write_atomically


@dataclass(frozen=True)
class ArrayHeader:
    """What an array's file says of it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged archive raises into a DataError that names the file."""
    try:
        yield
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an .npz file ({first_line(error)}); is it whole?") from error


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an .npz file. Raises DataError if it is none."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_header(path: Path, name: str) -> ArrayHeader:
    """Shape and type of an array, which must be in the file. Raises DataError if the file is damaged."""
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        return _parse_header(member)


def read_array(path: Path, name: str) -> np.ndarray:
    """A whole array. Raises DataError if the file is damaged, or the array holds Python objects."""
    with _reading(path), np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def read_rows(path: Path, name: str) -> Iterator[np.ndarray]:
    """An array along its first axis, one row in memory at a time (all of them if it lies in Fortran order)."""
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        header = _parse_header(member)
        if header.fortran_order:
            yield from read_array(path, name)
            return
        shape = header.shape[1:]
        size = math.prod(shape) * header.dtype.itemsize
        for number in range(header.shape[0]):
            content = member.read(size)
            if len(content) < size:
                raise EOFError(f"{name} ends in row {number} of {header.shape[0]}")
            yield np.frombuffer(content, header.dtype).reshape(shape)


def _parse_header(member: zipfile.ZipExtFile) -> ArrayHeader:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(member)
    if version not in readers:
        raise ValueError(f"version {version} of the npy format")
    shape, fortran_order, dtype = readers[version](member)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    return ArrayHeader(shape, dtype, fortran_order)


def write_npz(
    path: str | Path,
    name: str,
    shape: tuple[int, ...],
    rows: Iterable[np.ndarray],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write an uncompressed .npz file atomically; equal content gives equal bytes.

    Args:
        name: of the array that comes in rows.
        shape: [N, ...] of that array, uint8.
        rows: its N rows.
        arrays: more, which are small.
    """

    def write(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, facts)
                count = 0
                for row in rows:
                    assert row.dtype == np.uint8 and row.shape == shape[1:], "rows are of one shape, uint8"
                    member.write(row.tobytes())
                    count += 1
                assert count == shape[0], "there are as many rows as the header says"
            for other, array in (arrays or {}).items():
                with archive.open(f"{other}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_atomically(path, write)
