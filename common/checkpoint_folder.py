"""Checkpoints as folders that are either whole or not there, and that prove that they are undamaged.

    run_dir/checkpoints/checkpoint-<images seen>/
        *.safetensors, *.json      what the checkpoint holds
        manifest.json              SHA-256 and size of each of these, library versions, `nimg`, resolved configuration
        manifest.sha256            SHA-256 of manifest.json

A folder is filled under another name, flushed to disk and renamed, so its final name only ever holds a whole one.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from common.files import flush_to_disk, sha256_of


class DamagedCheckpointError(CheckpointError):
    """A checkpoint with a file that is missing or not as it was written."""


SCHEMA_VERSION = 1
_NAME = re.compile(r"checkpoint-(\d{12})")
_LIBRARIES = ("torch", "torchvision", "transformers", "timm", "safetensors", "numpy")


def checkpoint_path(run_dir: str | Path, nimg: int) -> Path:
    """The folder of a run's checkpoint after `nimg` images."""
    return Path(run_dir) / "checkpoints" / f"checkpoint-{nimg:012d}"


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; folders that are still being written are not among them."""
    folder = Path(run_dir) / "checkpoints"
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda p: p.name)


def write_checkpoint(target: Path, fill: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Let `fill` write the files of a checkpoint, add the manifest, and give the folder its final name.

    Args:
        target: final folder; its parent is created.
        fill: writes all files into the folder that it is given.
        facts: what the manifest says besides hashes and versions.

    Raises: OSError if the disk is full or the folder cannot be written; nothing is left behind then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        partial.chmod(0o755)
        fill(partial)
        _write_manifest(partial, facts)
        for path in partial.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes for the owner alone
            flush_to_disk(path)
        flush_to_disk(partial)
        replaced = None
        if target.exists():  # the same point of the same run, written again after a resume
            replaced = partial.with_name(f".{target.name}.replaced.partial")
            os.rename(target, replaced)
        os.rename(partial, target)
        flush_to_disk(target.parent)
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
        raise


def remove_partial_checkpoints(run_dir: str | Path) -> None:
    """Delete what a killed process left half written."""
    for path in (Path(run_dir) / "checkpoints").glob(".checkpoint-*.partial"):
        whole = path.with_name(path.name[1:].split(".")[0])
        if path.name.endswith(".replaced.partial") and not whole.exists():
            os.rename(path, whole)  # killed between the two renames of a checkpoint that was written again
        else:
            shutil.rmtree(path, ignore_errors=True)


def verify(folder: str | Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest; returns the manifest.

    Raises: DamagedCheckpointError that names the first file that is missing or damaged; CheckpointError if the
        checkpoint was written by a newer version.
    """
    folder = Path(folder)
    try:
        text = (folder / "manifest.json").read_bytes()
        expected = (folder / "manifest.sha256").read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"{folder}: its manifest cannot be read ({error}).") from error
    if _line_of_sha256(folder / "manifest.json") != expected:
        raise DamagedCheckpointError(
            f"{folder / 'manifest.json'}: damaged; its SHA-256 is not the one in manifest.sha256."
        )
    manifest = json.loads(text)
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder}: written by a newer version (schema {manifest['schema_version']}, this one reads up to "
            f"{SCHEMA_VERSION}); update the project."
        )
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpointError(f"{path}: missing.")
        if path.stat().st_size != facts["bytes"]:
            raise DamagedCheckpointError(f"{path}: found {path.stat().st_size} bytes, expected {facts['bytes']}.")
        if sha256_of(path) != facts["sha256"]:
            raise DamagedCheckpointError(f"{path}: damaged; its SHA-256 is not the one in the manifest.")
    return manifest


def newest_complete(run_dir: str | Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that is undamaged, or None if the run has none yet.

    Args:
        warn: called with a sentence for each damaged checkpoint that is passed over.

    Raises: CheckpointError if there are checkpoints, and all of them are damaged.
    """
    folders = list_checkpoints(run_dir)
    for path in reversed(folders):
        try:
            verify(path)
            return path
        except DamagedCheckpointError as error:
            warn(f"{error} Falling back to the checkpoint before it.")
    if folders:
        raise CheckpointError(
            f"{run_dir}: all {len(folders)} checkpoints are damaged; restore one from a copy, or move the folder "
            "`checkpoints` away to start anew."
        )
    return None


def set_aside_newer(folder: Path) -> None:
    """Rename checkpoints that are newer than the one a run goes on from, so that they are never taken for its own."""
    for path in list_checkpoints(folder.parent.parent):
        if path.name > folder.name:
            os.rename(path, path.with_name(f"damaged-{path.name}-{time.time_ns()}"))


def find_checkpoint(path: str | Path, warn: Callable[[str], None]) -> Path:
    """The checkpoint folder that a user means: the folder itself, or the newest complete one of a run folder.

    Raises: CheckpointError if there is none, or the folder is damaged.
    """
    path = Path(path)
    if (path / "manifest.json").exists() or _NAME.fullmatch(path.name):
        verify(path)
        return path
    run_dir = path.parent if path.name == "checkpoints" else path
    if found := newest_complete(run_dir, warn):
        return found
    raise CheckpointError(
        f"{path}: no complete checkpoint here; "
        "give a checkpoint folder (checkpoint-...), or a run folder that holds one."
    )


def _write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in paths
    }
    manifest = {"schema_version": SCHEMA_VERSION, **facts, "files": files, "versions": library_versions()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (folder / "manifest.sha256").write_bytes(_line_of_sha256(folder / "manifest.json"))


def _line_of_sha256(path: Path) -> bytes:
    return sha256_of(path).encode("ascii") + b"\n"


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what a run computes."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}
