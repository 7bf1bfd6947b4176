"""Writing WebDataset shards: from samples in memory, or from a folder of images.

Equal input gives equal bytes: no clock, user or file-system order goes into a shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.errors import DataError
from common.files import write_atomically, write_json_atomically
from data.decode import IMAGE_EXTENSIONS, decode_image
from data.shards import SIZES_FILE, list_shards, scan_shard, split_member_name
from data.skips import BadSample, Skip
from data.sources import ImageFolderSource, parse_labels

ImageFormat = Literal["keep", "jpeg", "png"]
JPEG_QUALITY = 95
CLASS_TEXTS_FILE = "cls_to_text.json"


@dataclass(frozen=True)
class NewSample:
    """A sample to be written.

    Args:
        key: unique name; no dot after its last slash.
        image: bytes of an image file.
        extension: jpg, jpeg, png or webp.
        label: class index, or None.
        note: what else a reader may want to know, stored as JSON; None stores nothing.
    """

    key: str
    image: bytes
    extension: str
    label: int | None = None
    note: Mapping[str, Any] | None = None

    def members(self) -> list[tuple[str, bytes]]:
        """Names and contents of the sample's files."""
        label = [] if self.label is None else [(f"{self.key}.cls", str(self.label).encode())]
        note = [] if self.note is None else [(f"{self.key}.json", json.dumps(self.note, sort_keys=True).encode())]
        return [*label, (f"{self.key}.{self.extension}", self.image), *note]


@dataclass(frozen=True)
class WrittenShards:
    """What `write_shards` wrote: the shards, and how many samples they hold together."""

    shards: list[Path]
    samples: int


def encode_image(pixels: np.ndarray, image_format: Literal["jpeg", "png"]) -> tuple[bytes, str]:
    """[H, W, 3] uint8 -> (file bytes, extension); JPEG of quality 95 without chroma subsampling, or PNG."""
    buffer = io.BytesIO()
    if image_format == "jpeg":
        Image.fromarray(pixels).save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0)
        return buffer.getvalue(), "jpg"
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue(), "png"


def write_shards(
    samples: Iterable[NewSample], output_dir: str | Path, shard_size: int = 1000, prefix: str = "shard"
) -> WrittenShards:
    """Write samples to `output_dir/prefix-000000.tar` and so on, `shard_size` to each, and read them back.

    `sizes.json` beside them says how many samples each holds, for those who read the shards from far away.

    Raises: DataError if the folder already holds shards, if two samples have the same key, or if what is read back
        is not what was written.
    """
    output_dir = Path(output_dir)
    if output_dir.is_dir() and list_shards(output_dir):
        raise DataError(f"{output_dir}: already holds .tar shards; empty it or choose another folder.")
    remaining = iter(samples)
    shards: list[Path] = []
    sizes: dict[str, int] = {}
    keys: set[str] = set()
    while chunk := list(islice(remaining, shard_size)):
        for sample in chunk:
            _check_sample(sample, keys)
        shard = output_dir / f"{prefix}-{len(shards):06d}.tar"
        write_atomically(shard, lambda partial, chunk=chunk: _write_tar(partial, chunk))
        _verify(shard, chunk)
        shards.append(shard)
        sizes[shard.name] = len(chunk)
    write_json_atomically(output_dir / SIZES_FILE, sizes)
    return WrittenShards(shards, len(keys))


def _check_sample(sample: NewSample, keys: set[str]) -> None:
    if split_member_name(f"{sample.key}.{sample.extension}") != (sample.key, sample.extension):
        raise DataError(f"{sample.key!r} cannot be a sample key: it may have no dot after its last slash.")
    assert sample.extension in IMAGE_EXTENSIONS
    if sample.key in keys:
        raise DataError(f"{sample.key!r} is the key of two samples; keys must be unique.")
    keys.add(sample.key)


def _write_tar(path: Path, samples: list[NewSample]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            for name, content in sample.members():
                member = tarfile.TarInfo(name)
                member.size, member.mode, member.mtime = len(content), 0o644, 0
                tar.addfile(member, io.BytesIO(content))


def _verify(shard: Path, samples: list[NewSample]) -> None:
    index = scan_shard(shard.parent, shard.name)
    if index.problems or len(index.samples) != len(samples):
        raise DataError(f"{shard}: read back {len(index.samples)} of {len(samples)} samples, {index.problems}.")
    with shard.open("rb") as file:
        for sample in samples:
            for name, content in sample.members():
                extent = index.samples[sample.key][name.rpartition(".")[2]]
                file.seek(extent.offset)
                if file.read(extent.size) != content:
                    raise DataError(f"{shard}: {name}: what was read back differs from what was written.")


# --- from a folder of images ---------------------------------------------------------------------------------


@dataclass
class FolderReport:
    """What became of a folder of images.

    Args:
        written: the shards.
        class_names: class index -> name; empty when the images have no classes.
        bad: images that were left out, and why.
        digest: SHA-256 over the bytes of all shards, in their order.
    """

    written: WrittenShards
    class_names: dict[int, str]
    bad: list[Skip] = field(default_factory=list)
    digest: str = ""


def shards_from_folder(
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    shard_size: int = 1000,
    image_format: ImageFormat = "keep",
    labels_path: str | Path | None = None,
    prefix: str = "shard",
    progress: bool = False,
) -> FolderReport:
    """Build shards from a folder of images.

    The class of an image is its first sub-folder, numbered in alphabetical order; or, with `labels_path`, what a
    JSON file says: `{"labels": [[relative name, class index], ...]}`. Images without sub-folders have no labels.
    The map of class names is written beside the shards as cls_to_text.json (usable as `data.cls_to_text_path`).

    Every image is decoded once, so that no bad one gets into a shard. `keep` copies the files of formats that shards
    can hold, and writes others as PNG; `jpeg` and `png` encode all anew in RGB.
    Raises: DataError if there is no image at all, or none that can be read.
    """
    input_dir = Path(input_dir)
    source = ImageFolderSource(input_dir)
    if len(source) == 0:
        raise DataError(f"{input_dir}: no image files found.")
    names = [source.key(index) for index in range(len(source))]
    labels, class_names = _labels_of(names, labels_path)
    report = FolderReport(WrittenShards([], 0), class_names)

    def samples() -> Iterator[NewSample]:
        keys: set[str] = set()
        for index, name in enumerate(tqdm(names, desc="Writing shards", unit="image", disable=not progress)):
            try:
                if labels is not None and name not in labels:
                    raise BadSample("no label")
                image, extension = _as_format(source.read_image(index), Path(name).suffix[1:].lower(), image_format)
            except BadSample as bad:
                report.bad.append(Skip(bad.kind, input_dir.name, name, bad.detail))
                continue
            key = _unique_key(name, keys)
            yield NewSample(key, image, extension, None if labels is None else labels[name])

    report.written = write_shards(samples(), output_dir, shard_size, prefix)
    if report.written.samples == 0:
        raise DataError(f"{input_dir}: none of {len(names)} images can be used; the first: {report.bad[0]}.")
    if class_names:
        write_json_atomically(Path(output_dir) / CLASS_TEXTS_FILE, {str(i): n for i, n in class_names.items()})
    report.digest = _digest(report.written.shards)
    return report


def _labels_of(names: list[str], labels_path: str | Path | None) -> tuple[dict[str, int] | None, dict[int, str]]:
    """(relative name -> class index, class index -> name); no labels if there are no classes."""
    if labels_path is not None:
        try:
            content = json.loads(Path(labels_path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{labels_path}: the label file cannot be read ({error}).") from error
        return parse_labels(str(labels_path), content), {}
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    if not classes:
        return None, {}
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {name: numbers[name.split("/")[0]] for name in names if "/" in name}
    return labels, dict(enumerate(classes))


def _as_format(content: bytes, suffix: str, image_format: ImageFormat) -> tuple[bytes, str]:
    """(file bytes, extension) of an image in the wanted format. Raises: BadSample."""
    pixels = decode_image(content).pixels
    if image_format == "keep" and suffix in IMAGE_EXTENSIONS:
        return content, suffix
    return encode_image(pixels, "jpeg" if image_format == "jpeg" else "png")


def _unique_key(name: str, keys: set[str]) -> str:
    """Key of a file: its relative name without suffix; dots become underscores, a number ends what exists already."""
    folder, _, file_name = name.rpartition("/")
    stem = re.sub(r"\.", "_", file_name.rpartition(".")[0])
    base = f"{folder}/{stem}" if folder else stem
    key, number = base, 1
    while key in keys:
        number += 1
        key = f"{base}-{number}"
    keys.add(key)
    return key


def _digest(shards: list[Path]) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        with shard.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
