"""Made-up images and shards for the tests of the data package."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def pixels_of(key: str, height: int = 20, width: int = 24) -> np.ndarray:
    """[H, W, 3] uint8 that depend on the key."""
    return np.random.default_rng(list(key.encode())).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray | Image.Image, image_format: str = "png", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def sample(key: str, label: int | None = 0, image: bytes | None = None) -> list[tuple[str, bytes]]:
    """Members of one sample: image first, then the class."""
    members = [(f"{key}.png", encoded(pixels_of(key)) if image is None else image)]
    return members if label is None else [*members, (f"{key}.cls", str(label).encode())]


def write_shards(folder: Path, sizes: Iterable[int], bad: dict[str, bytes] | None = None) -> list[str]:
    """Shards of the given sizes; keys are `<shard>_<number>`, labels the shard number. `bad` replaces image bytes."""
    keys = []
    for shard, size in enumerate(sizes):
        of_shard = [f"{shard}_{number:03d}" for number in range(size)]
        members = [member for key in of_shard for member in sample(key, shard, (bad or {}).get(key))]
        write_tar(folder / f"{shard:02d}.tar", members)
        keys += of_shard
    return keys
