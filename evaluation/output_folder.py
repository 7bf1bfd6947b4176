"""Folders that a tool fills: only its own files, all of one origin, with a manifest that says which."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.checkpoint_folder import library_versions
from common.errors import DataError, first_line
from common.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST_NAME = "manifest.json"


def refuse_foreign(folder: Path, names: set[str]) -> None:
    """Raise DataError if a folder holds PNG files with other names: they would be taken for results of this run."""
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} if folder.is_dir() else set()
    foreign = sorted(name for name in present - names if not Path(name).name.startswith("."))
    if foreign:
        raise DataError(
            f"{folder}: holds {len(foreign)} PNG files that this run does not write, such as {foreign[0]}; "
            "choose an empty --output-dir or remove them."
        )


def refuse_other_origin(folder: Path, identity: dict[str, Any], remedy: str) -> None:
    """Raise DataError if the manifest of the files in a folder does not say `identity` of them.

    Args:
        identity: what decides the content of the files, as the manifest holds it.
        remedy: what to do to have them written again ("leave out --skip-existing").
    """
    path = folder / MANIFEST_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}), so the files beside it may be of another model; {remedy} to write "
            "them again."
        ) from error
    for key, expected in identity.items():
        if found.get(key) != expected:
            raise DataError(
                f"{path}: {key}: found {found.get(key)}, expected {expected}; {remedy} to write all files again."
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the tool that filled a folder says of it. Raises: DataError if it cannot be read."""
    path = folder / MANIFEST_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run the tool again that writes it.") from error


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, whole or not at all. Raises: DataError if that cannot be done."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        write_atomically(path, lambda partial: save_file(dict(tensors), partial))
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path}: cannot be written ({first_line(error)}). What is finished is kept: make room, and start the "
            "same command again to go on."
        ) from error


def tool_versions() -> dict[str, str]:
    """Versions of what decides the pixels that a tool writes."""
    return {"python": platform.python_version(), **library_versions(), "pillow": version("pillow")}
