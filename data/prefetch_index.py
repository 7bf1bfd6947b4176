"""The index of a folder of prefetched latents: how they were made, whether all of them are there.

    index.json      status ("running" until everything is there), plan, files with their SHA-256, counts, statistics

Folders that other programs wrote have none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import DataError

INDEX_FILE = "index.json"


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a folder, or None if it has none.

    Raises: DataError if it cannot be read.
    """
    path = folder / INDEX_FILE
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); prefetch into an empty folder again.") from error
    if not isinstance(index, dict) or not {"status", "plan"} <= index.keys():
        raise DataError(f"{path}: is no index of prefetched latents; prefetch into an empty folder again.")
    return index


def require_finished(folder: Path) -> dict[str, Any] | None:
    """The index of a folder whose prefetch has ended, or None if it has no index.

    Raises: DataError if the prefetch was interrupted.
    """
    index = read_index(folder)
    if index is not None and index["status"] != "complete":
        raise DataError(
            f"{folder / INDEX_FILE}: the prefetch into this folder has not ended; start the same command again to "
            "complete it."
        )
    return index


def list_shards(folder: str | Path) -> list[Path]:
    """The *.safetensors files of a folder of prefetched latents, sorted by name.

    Raises: DataError if there are none, if the prefetch was interrupted, or if they are not those of the index.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; expected one that holds prefetched latents.")
    index = require_finished(folder)
    paths = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: no *.safetensors files; prefetch latents first (docs/latents.md).")
    if index is not None:
        expected = {file["name"]: file["bytes"] for file in index["files"]}
        found = {path.name: path.stat().st_size for path in paths}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise DataError(
                    f"{folder / name}: found {_bytes(found.get(name))}, but {INDEX_FILE} beside it says "
                    f"{_bytes(expected.get(name))}; remove files of another run, or start the prefetch again."
                )
    return paths


def _bytes(count: int | None) -> str:
    return "no such file" if count is None else f"{count} bytes"
