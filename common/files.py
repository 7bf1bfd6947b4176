"""Files that are either whole or absent: write beside the final name, flush to disk, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sha256_of(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: str | os.PathLike) -> None:
    """fsync a file or a directory, so that a power cut after this call cannot lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | os.PathLike, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the target's folder, then rename it to `path`.

    A reader sees the old file or the new one, never a part of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(descriptor)
    try:
        write(Path(name))
        os.chmod(name, 0o666 & ~_umask())
        flush_to_disk(name)
        os.replace(name, path)
        flush_to_disk(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """`write_atomically` for a text in UTF-8."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json_atomically(path: str | os.PathLike, value: Any, indent: int | None = 2) -> None:
    """`write_atomically` for a value that JSON can hold."""
    write_text_atomically(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
