"""Finding files below a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def list_files(root: Path, suffixes: Iterable[str]) -> list[str]:
    """Relative names (with `/`) of all files below `root` whose suffix is one of `suffixes`, in any case, sorted.

    Links to folders are followed, each folder once; hidden files and folders are left out.
    """
    suffixes = tuple(suffix.lower() for suffix in suffixes)
    visited: set[tuple[int, int]] = set()
    names: list[str] = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(suffixes):
                names.append(Path(folder, name).relative_to(root).as_posix())
    return sorted(names)
