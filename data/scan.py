"""Scanning a data set for images that are large enough; only image headers are read."""

from __future__ import annotations

from dataclasses import dataclass, field

from tqdm import tqdm

from data.decode import image_size
from data.skips import BadSample, Skip
from data.sources import SampleSource

_HEADER_BYTES = 16 * 1024


@dataclass
class ScanResult:
    """Keys of the images that are large enough, how many there are in all, and what could not be read."""

    keys: list[str] = field(default_factory=list)
    scanned: int = 0
    bad: list[Skip] = field(default_factory=list)


def scan_large_images(source: SampleSource, min_side: int, progress: bool = False) -> ScanResult:
    """Find the images whose shorter side is at least `min_side` pixels, in the order of the source."""
    result = ScanResult()
    for index in tqdm(range(len(source)), desc="Scanning", unit="image", disable=not progress):
        result.scanned += 1
        try:
            if min(_size_of(source, index)) >= min_side:
                result.keys.append(source.key(index))
        except BadSample as bad:
            result.bad.append(Skip(bad.kind, source.shard(index), source.key(index), bad.detail))
    return result


def _size_of(source: SampleSource, index: int) -> tuple[int, int]:
    try:
        return image_size(source.read_image(index, _HEADER_BYTES))
    except BadSample:  # some formats (WebP), and JPEG files with long comments, need more than the first bytes
        return image_size(source.read_image(index))
