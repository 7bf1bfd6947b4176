"""Files that torch.save wrote, read so that nothing in them is ever executed."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.errors import CheckpointError, first_line


def read_torch_file(path: str | Path, records: Sequence[type] = ()) -> Any:
    """What a file holds: tensors, dicts, texts and numbers, on the CPU; tensors stay on disk until they are used.

    Args:
        records: classes that the file may hold besides; only such whose making and filling runs no code of the file's
            choice.

    Raises: CheckpointError if it is damaged, or reading it could execute code.
    """
    is_archive = zipfile.is_zipfile(path)  # what torch writes today; only these can be memory-mapped
    try:
        with torch.serialization.safe_globals(list(records)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # torch raises many types for a damaged or refused file
        raise CheckpointError(f"{path}: {_why_unreadable(path, is_archive, error)}") from error


def _why_unreadable(path: str | Path, is_archive: bool, error: Exception) -> str:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return (
            f"holds an object of {refused[1]}, and reading that could execute code; it is never unpickled. Expected "
            "only tensors, dicts, texts and numbers: have the program that made it save plain dicts."
        )
    with open(path, "rb") as file:
        is_cut = not is_archive and file.read(2) == b"PK"
    if is_cut:
        return f"is cut off: its {Path(path).stat().st_size:,} bytes have a beginning but no end; copy it again."
    reason = first_line(error).partition(". ")[0]  # what follows advises to turn the safety off
    return f"is no file that torch.save wrote, or it is damaged ({type(error).__name__}: {reason})."
