"""Where shards are: from `data.path` to one place per shard, on this machine or far away.

`data.path` names shards one by one as a URL or a pattern (`https://host/folder/train-{0000..1023}.tar`), as a command
that writes a shard to its output (`pipe:aws s3 cp s3://bucket/train-{0000..1023}.tar -`), or as a text file with one
of these (or a path) per line. Imports no torch.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from common.errors import DataError

PIPE = "pipe:"
_TAR_IN_COMMAND = re.compile(r"[^\s'\"=]+\.tar\b")


def is_remote(place: str) -> bool:
    """Whether a place is a URL, or a command, rather than a path."""
    return "://" in place or place.startswith(PIPE)


def names_shards(path: str) -> bool:
    """Whether `data.path` names shards one by one, rather than a folder to be searched (or one local .tar file)."""
    return is_remote(path) or path.endswith(".txt") or ("{" in path and not Path(path).expanduser().exists())


def read_places(path: str) -> list[str]:
    """The places of all shards that `data.path` names, patterns expanded, in the order in which they are given.

    Raises: DataError if a list cannot be read, names nothing or holds a command, or if a pattern is malformed.
    """
    if is_remote(path) or not path.endswith(".txt"):
        return _expand(path)
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.path: {path}: the list of shards cannot be read ({error}).") from error
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    # A list may come from elsewhere; a command is only taken from the configuration itself.
    if commands := [pattern for pattern in patterns if pattern.startswith(PIPE)]:
        raise DataError(f"data.path: {path}: found the command {commands[0]!r}, expected URLs or paths in a list.")
    if not patterns:
        raise DataError(f"data.path: {path}: found no line, expected the URL or path of a shard on each.")
    return [place for pattern in patterns for place in _expand(pattern)]


def _expand(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    from braceexpand import UnbalancedBracesError, braceexpand  # comes with webdataset

    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise DataError(f"data.path: {pattern}: {error}; write {{{{0000..1023}}}} for a range.") from error


def shard_names(places: Sequence[str]) -> tuple[str, list[str]]:
    """(the folder that all shards have in common, the shards' names relative to it).

    Raises: DataError if two places have the same name, or a command names no .tar file.
    """
    paths = [_path_of(place) for place in places]
    root = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    names = [posixpath.relpath(path, root) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise DataError(f"data.path: the shard {twice} is named twice; name each shard once.")
    return root, names


def _path_of(place: str) -> str:
    """A place as an absolute path: that of the file, /host/path of a URL, or what a command has for its .tar file."""
    if place.startswith(PIPE):
        found = _TAR_IN_COMMAND.findall(place)
        if not found:
            raise DataError(f"data.path: {place!r} names no .tar file, which is needed to tell shards apart.")
        place = found[-1]
    if "://" in place:
        parts = urlsplit(place)
        return posixpath.normpath(f"/{parts.netloc}/{parts.path.lstrip('/')}")
    return os.path.abspath(Path(place).expanduser())
