"""Formats with one safetensors file per part: columns of tensors, with labels and names beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.files import sha256_of, write_atomically
from data.name_tensors import pack_names
from evaluation.prefetch.format import Batch, Encoded, PartWriter, PrefetchFormat, Record
from evaluation.prefetch.parts import Part


class ShardFormat(PrefetchFormat):
    """One file `<file_stem>_rank00_shard000.safetensors` per part."""

    file_stem: str

    def open_part(self, folder: Path, part: Part) -> PartWriter:
        return ShardWriter(folder / f"{self.file_stem}_{part.name}.safetensors", capacity=part.stop - part.start)

    def is_whole(self, folder: Path, record: Record) -> bool:
        file = record["file"]
        path = None if file is None else folder / file["name"]
        return path is None or (path.is_file() and path.stat().st_size == file["bytes"])

    def finish(self, folder: Path, records: Sequence[Record]) -> dict[str, Any]:
        return {"files": [{**record["file"], "rows": record["rows"]} for record in records if record["file"]]}

    def shards(self, folder: Path, records: Sequence[Record]) -> list[Path]:
        """The files of finished parts, sorted by name as readers do."""
        return sorted(folder / record["file"]["name"] for record in records if record["file"])


class ShardWriter:
    """Collects the rows of a file in memory, in tensors that are made once.

    Args:
        path: the file.
        capacity: most rows that can come.
    """

    def __init__(self, path: Path, capacity: int):
        self._path, self._capacity = path, capacity
        self._columns: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._labels: list[int] = []

    def add(self, batch: Batch, encoded: Encoded) -> None:
        start = len(self._names)
        for name, rows in encoded.columns.items():
            if name not in self._columns:
                self._columns[name] = torch.empty(self._capacity, *rows.shape[1:], dtype=rows.dtype)
            self._columns[name][start : start + len(rows)] = rows
        self._names += batch.keys
        self._labels += batch.labels

    def finish(self) -> dict[str, Any]:
        rows = len(self._names)
        if rows == 0:
            return {"rows": 0, "file": None}
        tensors = {name: column[:rows] for name, column in self._columns.items()}
        tensors |= {"labels": torch.tensor(self._labels, dtype=torch.int64), "names": pack_names(self._names)}
        write_atomically(self._path, lambda partial: save_file(tensors, partial))
        file = {"name": self._path.name, "bytes": self._path.stat().st_size, "sha256": sha256_of(self._path)}
        return {"rows": rows, "file": file}
