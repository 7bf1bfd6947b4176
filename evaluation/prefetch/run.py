"""Go through a labelled set of shards once and store what a format makes of each image.

tar shards -> images -> ADM crop -> encoder (batches of one size) -> files of one part after the other -> statistics

The data set is divided into parts (`parts.py`). A part's files depend on its samples, the weights and the plan alone,
so it does not matter who computes it, or when. What is finished is on record:

    output_dir/index.json               the plan; `status` is "complete" once everything below is there
    output_dir/progress/<part>.json     a finished part: its rows, the hash of its files, what was skipped, its share of
                                        the statistics; written after the part's files

A run that finds records of the same plan does what is missing, with any number of ranks, and ends with the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from common import distributed
from common.errors import DataError, first_line
from common.files import write_json_atomically
from common.lock import locked
from data.decode import decode_image
from data.prefetch_index import INDEX_FILE, read_index
from data.skips import BadSample, Skip, count_by_kind_and_shard
from data.sources import SampleSource
from evaluation.batches import Turns, fill_up, in_batches, read_ahead
from evaluation.images import CROPS, open_shards, to_tensor
from evaluation.output_folder import tool_versions
from evaluation.prefetch.format import Batch, Encoded, PrefetchFormat
from evaluation.prefetch.parts import Part, divide
from networks.fingerprint import weights_fingerprint
from networks.latent_statistics import LatentStatistics

PROGRESS_FOLDER = "progress"
LAYOUT_VERSION = 1
CROP = "adm"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrefetchOptions:
    """How a data set is gone through.

    Args:
        resolution: side of what is encoded, in pixels; that of the ADM centre crops, unless a format takes larger ones.
        batch_size: images per batch and rank; it is part of the plan, since kernels may add in another order.
        rows_per_file: samples of a part, rounded up to whole batches.
        max_images_per_rank: only the first so many samples of each rank's share.
        max_skip_fraction: share of samples that may be left out before the run counts as failed.
        expected_count: how many images there must be in the end.
        workers: threads that read and decode.
    """

    resolution: int
    batch_size: int
    rows_per_file: int
    max_images_per_rank: int | None = None
    max_skip_fraction: float = 0.01
    expected_count: int | None = None
    workers: int = 4

    @property
    def samples_per_part(self) -> int:
        """`rows_per_file`, rounded up to whole batches."""
        return -(-self.rows_per_file // self.batch_size) * self.batch_size


@dataclass(frozen=True)
class PrefetchSummary:
    """What a finished prefetch holds.

    Args:
        found: samples that were to be stored.
        written: rows that are stored.
        kept: rows of parts that were there before this run.
        skips: what was left out.
    """

    found: int
    written: int
    kept: int
    skips: tuple[Skip, ...]


def prefetch(
    model: nn.Module,
    data_path: str | Path,
    output_dir: str | Path,
    kind: PrefetchFormat,
    options: PrefetchOptions,
    device: torch.device,
) -> PrefetchSummary:
    """Store what `kind` makes of every image of a labelled data set. Every rank must call it.

    Args:
        model: a tokenizer in eval mode, on `device`.
        data_path: folder of *.tar shards with classes, or one shard.
        output_dir: empty, or with what an interrupted run of the same plan has left.

    Raises: DataError if there are no labelled samples, if the folder holds something else, if more had to be left out
        than `max_skip_fraction` allows, if the count is not the expected one, or if a file cannot be written. What
        is finished by then is kept.
    """
    source = _open_source(Path(data_path))
    job = _Job(model, source, Path(output_dir), kind, options, device)
    with contextlib.ExitStack() as stack:
        distributed.on_rank_0(lambda: stack.enter_context(locked(job.output_dir)))
        start = distributed.on_rank_0(lambda: _prepare(job))
        mine = start.missing[distributed.rank() :: distributed.world_size()]
        images = sum(part.stop - part.start for part in mine)
        is_quiet = distributed.rank() != 0 or images == 0
        with tqdm(total=images, unit="image", disable=is_quiet, smoothing=0.1) as progress:
            for part in mine:
                _write_part(job, part, progress)
        distributed.barrier()
        return distributed.on_rank_0(lambda: _finish(job, start))


@dataclass(frozen=True)
class _Job:
    """What all steps of a prefetch work on."""

    model: nn.Module
    source: SampleSource
    output_dir: Path
    kind: PrefetchFormat
    options: PrefetchOptions
    device: torch.device

    def record_path(self, part: Part) -> Path:
        return self.output_dir / PROGRESS_FOLDER / f"{part.name}.json"

    def read_record(self, part: Part) -> dict[str, Any] | None:
        """The record of a part whose files are all there, or None."""
        try:
            record = json.loads(self.record_path(part).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return record if self.kind.is_whole(self.output_dir, record) else None

    def write_index(self, status: str, plan: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> None:
        write_json_atomically(self.output_dir / INDEX_FILE, {"status": status, "plan": plan, **(facts or {})})


def _open_source(path: Path) -> SampleSource:
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected a folder of *.tar shards, or one shard.")
    try:
        return open_shards(path, label_type="cls2id")
    except DataError as error:
        raise DataError(f"{error} Each sample needs an image and its class index (<key>.cls).") from error


@contextlib.contextmanager
def _telling_of_full_disks(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{folder}: cannot be written ({first_line(error)}). What is finished is kept: make room, and start the "
            "same command again to go on."
        ) from error


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Start:
    """Where a run begins: the plan, all parts, and those that are not there yet."""

    plan: dict[str, Any]
    parts: list[Part]
    missing: list[Part]


def _prepare(job: _Job) -> _Start:
    """Compare the plan with what is in the folder; on rank 0."""
    _check_source(job)
    index = read_index(job.output_dir)
    plan = _plan(job, ranks=distributed.world_size() if index is None else index["plan"].get("ranks"))
    if index is None:
        _require_empty(job.output_dir)
    else:
        _require_same_plan(job.output_dir, index["plan"], plan)
        _remove_partial_files(job.output_dir)
    options = job.options
    parts = divide(len(job.source), plan["ranks"], options.samples_per_part, options.max_images_per_rank)
    missing = [part for part in parts if job.read_record(part) is None]
    missing.sort(key=lambda part: (part.number, part.rank))  # so that as many ranks as planned take their own shares
    if missing:
        with _telling_of_full_disks(job.output_dir):
            job.write_index("running", plan)
    if len(missing) < len(parts):
        log.warning("%s: %d of %d parts are there already.", job.output_dir, len(parts) - len(missing), len(parts))
    return _Start(plan, parts, missing)


def _check_source(job: _Job) -> None:
    """Raise DataError for what can be known to go wrong before any work."""
    expected = job.options.expected_count
    if expected is not None and len(job.source) < expected:
        raise DataError(
            f"--expected-count: the shards hold {len(job.source)} labelled images, expected {expected}."
            f"{_tell(job.source.report.problems)}"
        )
    for number in range(len(job.source)):
        job.kind.check_key(job.source.key(number))


def _plan(job: _Job, ranks: int) -> dict[str, Any]:
    """What decides the content of every file."""
    source, options = job.source, job.options
    digest = hashlib.sha256()
    for number in range(len(source)):
        digest.update(f"{source.shard(number)}\0{source.key(number)}\n".encode("utf-8", "surrogateescape"))
    return {
        "layout_version": LAYOUT_VERSION,
        "format": job.kind.name,
        **job.kind.identity(),
        **job.kind.identity_of(job.model),
        "weights_sha256": weights_fingerprint(job.model.state_dict()),
        "crop": CROP,
        "resolution": options.resolution,
        "inputs": {"shards": len(source.shard_names), "samples": len(source), "keys_sha256": digest.hexdigest()},
        "batch_size_per_rank": options.batch_size,
        "samples_per_part": options.samples_per_part,
        "max_images_per_rank": options.max_images_per_rank,
        "device": job.device.type,
        "ranks": ranks,
    }


def _require_empty(folder: Path) -> None:
    present = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if present:
        raise DataError(
            f"{folder}: holds {present[0]}{' and others' if len(present) > 1 else ''}, but no {INDEX_FILE} that would "
            "say where they come from; choose an empty --output-dir."
        )


def _require_same_plan(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    differing = [key for key in sorted(found.keys() | expected.keys()) if found.get(key) != expected.get(key)]
    if differing:
        told = "; ".join(f"{key}: found {found.get(key)}, this run has {expected.get(key)}" for key in differing)
        raise DataError(
            f"{folder / INDEX_FILE}: the folder was begun with another plan ({told}). Start with the same settings to "
            "go on, or choose an empty --output-dir."
        )


def _remove_partial_files(folder: Path) -> None:
    """Delete what a killed run left half written."""
    for path in folder.rglob(".*.partial"):
        path.unlink(missing_ok=True)


# --- one part ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Crop:
    """A sample that was read: its image is uint8 [3, R, R]."""

    key: str
    label: int
    image: Tensor


def _write_part(job: _Job, part: Part, progress: tqdm) -> None:
    """Write a part's files, then its record."""
    skips: list[Skip] = []
    statistics: LatentStatistics | None = None
    with _telling_of_full_disks(job.output_dir):
        writer = job.kind.open_part(job.output_dir, part)
        for batch, encoded in _encoded_batches(job, part, skips, progress):
            writer.add(batch, encoded)
            for z in encoded.latents:
                _require_finite(z, batch)
                statistics = statistics or LatentStatistics(z.shape[1])
                statistics.update(z)
        record = {
            "part": part.name,
            **writer.finish(),
            "skips": [asdict(skip) for skip in skips],
            "statistics": None if statistics is None else statistics.to_values(),
        }
        write_json_atomically(job.record_path(part), record, indent=None)


def _require_finite(z: Tensor, batch: Batch) -> None:
    finite = z.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        key = batch.keys[int(finite.logical_not().nonzero()[0])]
        raise DataError(
            f"--vae-pth: the latent of the image {key} holds values that are not finite; the weights are damaged, or "
            "--dtype is too narrow for them."
        )


@torch.inference_mode()
def _encoded_batches(job: _Job, part: Part, skips: list[Skip], progress: tqdm) -> Iterator[tuple[Batch, Encoded]]:
    """The batches of a part and what is to be stored of them; reading overlaps with computing.

    Every batch is encoded with the full number of images, so that their number changes nothing of a single one.

    Args:
        skips: gets what had to be left out.
    """
    reading = threading.Lock()  # a source is made for one reader
    side = job.kind.crop_side(job.options.resolution)
    size, workers = job.options.batch_size, job.options.workers
    turns = Turns(job.device)

    @turns.of_files
    def read(number: int) -> _Crop | Skip:
        try:
            with reading:
                sample = job.source.read(number)
            image = Image.fromarray(decode_image(sample.image).pixels)
        except BadSample as bad:
            return Skip(bad.kind, job.source.shard(number), job.source.key(number), bad.detail)
        return _Crop(sample.key, sample.label, to_tensor(CROPS[CROP](image, side)))

    def crops(results: Iterable[_Crop | Skip]) -> Iterator[_Crop]:
        for result in results:
            progress.update()
            if isinstance(result, Skip):
                log.warning("%s: left out", result)
                skips.append(result)
            else:
                yield result

    with ThreadPoolExecutor(workers) as readers:
        results = read_ahead(readers, read, range(part.start, part.stop), ahead=2 * size + workers)
        for batch in in_batches(crops(results), size):
            filled = fill_up(batch, size)
            images = torch.stack([crop.image for crop in filled])
            with turns.of_network():
                encoded = job.kind.encode(job.model, images.to(job.device), [crop.key for crop in filled])
            keys, labels = [crop.key for crop in batch], [crop.label for crop in batch]
            yield Batch(keys, labels, images[: len(batch)]), encoded.first(len(batch))


# --- the end ----------------------------------------------------------------------------------------------------------


def _finish(job: _Job, start: _Start) -> PrefetchSummary:
    """Check the counts, write what there is once for all parts, and call the folder complete; on rank 0."""
    records = [record for part in start.parts if (record := job.read_record(part)) is not None]
    if len(records) < len(start.parts):
        raise DataError(
            f"{job.output_dir}: files have vanished while others were written; start the same command again."
        )
    problems = job.source.report.problems
    skips = [*problems, *(Skip(**skip) for record in records for skip in record["skips"])]
    written = sum(record["rows"] for record in records)
    found = sum(part.stop - part.start for part in start.parts) + len(problems)
    _check_counts(found, written, skips, job.options)
    counts = {"found": found, "written": written, "skipped": count_by_kind_and_shard(skips)}
    with _telling_of_full_disks(job.output_dir):
        facts = job.kind.finish(job.output_dir, records)
        job.write_index("complete", start.plan, {"counts": counts, **facts, "versions": tool_versions()})
    missing = {part.name for part in start.missing}
    kept = sum(record["rows"] for record in records if record["part"] not in missing)
    return PrefetchSummary(found, written, kept, tuple(skips))


def _check_counts(found: int, written: int, skips: Sequence[Skip], options: PrefetchOptions) -> None:
    if written == 0:
        raise DataError(f"none of {found} images can be used.{_tell(skips)}")
    if len(skips) > options.max_skip_fraction * found:
        raise DataError(
            f"{len(skips)} of {found} samples had to be left out, expected at most --max-skip-fraction "
            f"{options.max_skip_fraction:g} of them.{_tell(skips)} Repair or remove them and prefetch into an empty "
            "folder, or start the same command with a larger fraction: what is written is kept."
        )
    if options.expected_count not in (None, written):
        raise DataError(
            f"--expected-count: {written} images are written, expected {options.expected_count}.{_tell(skips)} Start "
            "the same command without it, or with that count, to accept what is written."
        )


def _tell(skips: Sequence[Skip]) -> str:
    """A sentence about what was left out; empty if nothing was."""
    counts = [
        f"{shard}: {kind} ({count})"
        for kind, shards in count_by_kind_and_shard(skips).items()
        for shard, count in shards.items()
    ]
    more = f", and {len(counts) - 5} more" if len(counts) > 5 else ""
    return f" Left out: {', '.join(counts[:5])}{more}." if counts else ""
