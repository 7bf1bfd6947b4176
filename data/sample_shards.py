"""Shards of latents or tokens that a network sampled, and the names of the images that they become. Imports no torch.

samples_rank{RR}_shard{SSS}.safetensors     latents: float [n, C, h, w], as the decoder takes them
                                            or tokens: int [n, K, h, w], of each of K codebooks
                                            labels:  int [n]; may be missing
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from common.errors import DataError, first_line
from common.files import sha256_of

CONTENTS = {"latents": ("F32", "F16", "BF16"), "tokens": ("U16", "I32", "I64")}
UNKNOWN_CLASS = "unknown"


@dataclass(frozen=True)
class SampleShard:
    """One shard.

    Args:
        rows: number of samples; 0 for a shard that is left out.
        content: "latents" or "tokens"; empty for a shard that is left out.
        shape: of a sample, [C, h, w] or [K, h, w].
        has_labels: its samples have labels.
    """

    path: Path
    rows: int
    content: str
    shape: tuple[int, ...]
    has_labels: bool


@dataclass(frozen=True)
class Sample:
    """One sample: its row in a shard, the name of its image, and its label if it has one."""

    shard: SampleShard
    row: int
    name: str
    label: int | None


@dataclass(frozen=True)
class SampleSet:
    """All shards of a folder, sorted by name, and what is wrong with those that are left out."""

    shards: tuple[SampleShard, ...]
    problems: tuple[str, ...]


def open_samples(folder: str | Path, skip_bad_shards: bool = False) -> SampleSet:
    """Look at the headers of all shards of a folder.

    Args:
        skip_bad_shards: leave out what cannot be read; it keeps its place in the split over ranks.
    Raises: DataError if there is no shard, if one cannot be read, or if samples differ in kind or shape.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; expected one that holds *.safetensors shards of latents or tokens.")
    paths = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: no *.safetensors shard found; expected what a sampler wrote.")
    shards, problems = [], []
    for path in paths:
        try:
            shards.append(_open_shard(path))
        except DataError as error:
            if not skip_bad_shards:
                raise DataError(f"{error} Mend or remove it, or pass --skip-bad-shards to go on without it.") from error
            problems.append(str(error))
            shards.append(SampleShard(path, 0, "", (), False))
    whole = [shard for shard in shards if shard.content]
    if not whole:
        raise DataError(f"{folder}: none of its {len(paths)} shards can be read; the first: {problems[0]}")
    for shard in whole:
        if (shard.content, shard.shape) != (whole[0].content, whole[0].shape):
            raise DataError(
                f"{shard.path}: {shard.content}: found {list(shard.shape)} per sample, expected {list(whole[0].shape)} "
                f"as in {whole[0].path.name}, which holds {whole[0].content}."
            )
    return SampleSet(tuple(shards), tuple(problems))


def _open_shard(path: Path) -> SampleShard:
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            kinds = {name: part.get_dtype() for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a safetensors file ({first_line(error)}).") from error
    contents = [name for name in CONTENTS if name in shapes]
    if len(contents) != 1:
        raise DataError(
            f"{path}: found {', '.join(sorted(shapes)) or 'nothing'}, expected latents and labels, or tokens and "
            "labels."
        )
    (content,) = contents
    rows, *shape = shapes[content]
    if len(shape) != 3 or kinds[content] not in CONTENTS[content]:
        raise DataError(
            f"{path}: {content}: found {kinds[content]} {list(shapes[content])}, expected "
            f"[n, {'C' if content == 'latents' else 'K'}, h, w] in {' or '.join(CONTENTS[content])}."
        )
    if shapes.get("labels", (rows,)) != (rows,):
        raise DataError(f"{path}: labels: found {list(shapes['labels'])} for {rows} {content}, expected [{rows}].")
    return SampleShard(path, rows, content, tuple(shape), "labels" in shapes)


def number_samples(
    shards: Sequence[SampleShard], world_size: int = 1, max_images_per_rank: int | None = None
) -> list[Sample]:
    """All samples with the names of their images, in order of name.

    Rank r of `world_size` has the shards r, r + world_size, ...; its samples are `rank{r}_{0, 1, 2, ...}.png`. With one
    rank the order is that of the shards. Which processes decode them has nothing to do with it.

    Args:
        max_images_per_rank: only the first so many of each rank.
    """
    samples = []
    for rank in range(world_size):
        own = [(shard, *row) for shard in shards[rank::world_size] for row in enumerate(read_labels(shard))]
        for i, (shard, row, label) in enumerate(own[:max_images_per_rank]):
            samples.append(Sample(shard, row, f"rank{rank:02d}_{i:06d}.png", label))
    return sorted(samples, key=lambda sample: sample.name)


def read_labels(shard: SampleShard) -> list[int | None]:
    """The labels of a shard's samples, None for each if it has none."""
    if not shard.has_labels:
        return [None] * shard.rows
    with safe_open(shard.path, framework="numpy") as file:
        return [int(label) for label in np.asarray(file.get_tensor("labels"))]


def label_records(samples: Sequence[Sample], class_texts: Mapping[int, str] | None) -> dict[str, dict[str, int | str]]:
    """What a label file says: image name -> `label_id` and, with texts, `class_name`; only of samples with a label."""
    records: dict[str, dict[str, int | str]] = {}
    for sample in samples:
        if sample.label is not None:
            records[sample.name] = {"label_id": sample.label}
            if class_texts is not None:
                records[sample.name]["class_name"] = class_texts.get(sample.label, UNKNOWN_CLASS)
    return records


def samples_fingerprint(shards: Sequence[SampleShard]) -> str:
    """SHA-256 over the names and contents of all shards."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.path.name} {sha256_of(shard.path)}\n".encode())
    return digest.hexdigest()
