"""Unpacking WebDataset shards into a flat folder of images, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from common.errors import DataError
from common.files import write_atomically, write_json_atomically
from data.decode import IMAGE_EXTENSIONS
from data.labels import LABEL_EXTENSIONS, WITHOUT_LABEL, parse_label
from data.shards import Extent, index_shards, list_shards, shard_root
from data.skips import BadSample, Skip

_AT_ONCE = 1024  # images that wait in the pool of threads


@dataclass
class ExtractReport:
    """What became of the samples of all shards.

    Args:
        shards: how many there are.
        written: images written by this call.
        kept: images that were there already.
        labelled: images with a class index, if these were asked for.
        problems: what could not be extracted, by shard and key.
    """

    shards: int
    written: int = 0
    kept: int = 0
    labelled: int = 0
    problems: list[Skip] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Member:
    """An image inside a shard, the file that it becomes, and where its label lies."""

    shard: Path
    key: str
    name: str
    image: Extent
    label: Extent | None


def extract_shards(
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    labels_json: str | Path | None = None,
    workers: int = 4,
    progress: bool = False,
) -> ExtractReport:
    """Copy every image of the shards at `input_dir` to `output_dir/<file name>`.

    A file that is there with the right size is kept, so an interrupted call is completed by the next; files are written
    whole or not at all. What is wrong with a shard is reported, and its whole samples are extracted all the same. Of a
    sample with several images the first of jpg, jpeg, png, webp is taken; extensions become lower case.

    Args:
        input_dir: folder of *.tar shards, searched recursively, or one shard.
        labels_json: also write `{"labels": [[file name, class index], ...]}` here, from the samples' `.cls`; as
            `dataset.json` in `output_dir` it makes the folder a labelled data set.
        workers: threads that copy.
    Raises: DataError before anything is written if there is no shard or no image, if two images would get names that
        differ in no more than their suffix, or if a file of another size is in the way.
    """
    path, output_dir = Path(input_dir), Path(output_dir)
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected a folder of *.tar shards, or one of them.")
    if not (shards := list_shards(path)):
        raise DataError(f"{path}: no *.tar shard found.")
    report = ExtractReport(len(shards))
    members = list(_members(path, report.problems))
    if not members:
        found = "; ".join(map(str, report.problems[:5]))
        raise DataError(f"{path}: no image in {len(shards)} shards ({found}).")
    _refuse_collisions(members)
    missing = [member for member in members if not _is_there(output_dir / member.name, member)]
    report.kept = len(members) - len(missing)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(missing), unit="image", disable=not progress) as bar:
        for start in range(0, len(missing), _AT_ONCE):
            for problem in pool.map(lambda member: _copy(member, output_dir), missing[start : start + _AT_ONCE]):
                if problem is None:
                    report.written += 1
                else:
                    report.problems.append(problem)
                bar.update()
    if labels_json is not None:
        _write_labels(Path(labels_json), members, report)
    return report


def _members(path: Path, problems: list[Skip]) -> Iterator[_Member]:
    """The images of all shards, in order of shard and then as they lie in it; everything else joins `problems`."""
    root = shard_root(path)
    for index in index_shards(path):
        shard = root / index.shard
        problems += index.problems
        for key, extents in index.samples.items():
            extension = next((extension for extension in IMAGE_EXTENSIONS if extension in extents), None)
            if extension is None:
                problems.append(Skip("no image", index.shard, key))
                continue
            name = f"{key.rpartition('/')[2]}.{extension}"
            label = extents.get(LABEL_EXTENSIONS["class"])
            yield _Member(shard, key, name, extents[extension], label)


def _refuse_collisions(members: list[_Member]) -> None:
    first: dict[str, _Member] = {}
    collisions: list[tuple[_Member, _Member]] = []
    for member in members:
        other = first.setdefault(Path(member.name).stem, member)
        if other is not member:
            collisions.append((other, member))
    if collisions:
        a, b = collisions[0]
        raise DataError(
            f"{a.key} of {a.shard} and {b.key} of {b.shard} would both be called {Path(b.name).stem} in a flat folder "
            f"({len(collisions)} such pairs); the tools that reconstruct images read the shards themselves, which "
            "keeps their keys apart."
        )


def _is_there(path: Path, member: _Member) -> bool:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    if size != member.image.size:
        raise DataError(
            f"{path}: found {size} bytes, expected the {member.image.size} of {member.key} in {member.shard}; remove "
            "it, or choose another folder."
        )
    return True


def _copy(member: _Member, output_dir: Path) -> Skip | None:
    try:
        content = _read(member.shard, member.image)
    except BadSample as bad:
        return Skip(bad.kind, member.shard.name, member.key, bad.detail)
    write_atomically(output_dir / member.name, lambda partial: partial.write_bytes(content))
    return None


def _read(shard: Path, extent: Extent) -> bytes:
    """Bytes of a member. Raises: BadSample if the shard is no longer what was indexed."""
    try:
        with open(shard, "rb") as file:
            content = os.pread(file.fileno(), extent.size, extent.offset)
    except OSError as error:
        raise BadSample("unreadable shard", str(error)) from error
    if len(content) < extent.size:
        raise BadSample("truncated shard", "it is shorter than when it was indexed")
    return content


def _write_labels(path: Path, members: list[_Member], report: ExtractReport) -> None:
    labels: list[tuple[str, int | str]] = []
    for member in members:
        try:
            if member.label is None:
                raise BadSample(WITHOUT_LABEL["class"])
            labels.append((member.name, parse_label("class", _read(member.shard, member.label))))
        except BadSample as bad:
            report.problems.append(Skip(bad.kind, member.shard.name, member.key, bad.detail))
    report.labelled = len(labels)
    write_json_atomically(path, {"labels": sorted(labels)}, indent=None)
