"""Folders of samples, as the decode tools read them.

    samples_rank{RR}_shard{SSS}.safetensors     latents: float32 [n, C, h, w], as the decoder takes them
                                                or tokens: uint16 [n, K, h, w]
                                                labels:  int32 [n]
    manifest.json                               what they were made by, `status`, and how they are divided

There are exactly as many samples as were asked for, numbered from 0 in the order of the files, and each depends on
nothing but its number: any number of ranks makes the same ones, and an interrupted run is completed with any number of
ranks. (The reference rounds the number up to whole batches of all ranks.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from common import distributed
from common.errors import DataError, UserError
from common.files import write_json_atomically
from common.lock import locked
from evaluation.batches import fill_up, in_batches
from evaluation.output_folder import MANIFEST_NAME, read_manifest, refuse_other_origin, tool_versions, write_shard
from evaluation.prefetch.parts import Part, divide
from evaluation.sampling.labels import LabelChoice, sample_labels


class SampleMaker(Protocol):
    """Makes samples, of which each depends on nothing but the weights, its label, the seed and its number.

    Attributes:
        num_classes: labels are 0 to num_classes - 1.
    """

    num_classes: int

    def identity(self) -> dict[str, Any]:
        """What decides the samples besides labels, seed and numbers, for a manifest."""
        ...

    def columns(self, indices: Sequence[int], labels: Tensor, seed: int) -> dict[str, Tensor]:
        """What is stored of samples with these numbers and labels [B], by name, [B, ...] each on the CPU."""
        ...


@dataclass(frozen=True)
class SampleRequest:
    """Which samples are wanted.

    Args:
        count: how many.
        seed: with a sample's number, it decides all draws.
        labels: "random" as published, or "balanced": every class equally often, give or take one.
        classes: the classes to draw from; None: all that the network knows.
    """

    count: int
    seed: int = 0
    labels: LabelChoice = "random"
    classes: tuple[int, ...] | None = None

    def pool(self, num_classes: int) -> Sequence[int]:
        """The classes to draw from. Raises UserError if the network does not know one, or there is none."""
        if self.classes is None:
            return range(num_classes)
        unknown = [label for label in self.classes if not 0 <= label < num_classes]
        if unknown or not self.classes:
            found = unknown[0] if unknown else "none"
            raise UserError(f"classes: found {found}, expected numbers from 0 to {num_classes - 1}.")
        return self.classes


@dataclass(frozen=True)
class SampleSummary:
    """Counts of a finished folder, over all ranks.

    Args:
        written: samples of this call.
        kept: samples whose shards were there already.
        seconds: wall time.
    """

    written: int
    kept: int
    seconds: float


def write_samples(
    maker: SampleMaker,
    output_dir: str | Path,
    request: SampleRequest,
    *,
    batch_size: int,
    samples_per_shard: int = 1000,
    description: dict[str, Any] | None = None,
) -> SampleSummary:
    """Draw samples on all ranks; every rank must call it. Shards that an interrupted run has finished are kept.

    Args:
        output_dir: empty, or with what a run of the same weights, settings and request has left.
        batch_size: samples per batch on each rank. It changes nothing beyond the rounding of the kernels, except with
            dopri5, whose steps a batch shares.
        samples_per_shard: so many samples of a rank are lost at most when it is interrupted.
        description: what else the manifest should say of the run.
    Raises: DataError if the folder holds something else, if it cannot be written, or if a sample is not finite.
    """
    started = time.monotonic()
    job = _Job(maker, Path(output_dir), request, request.pool(maker.num_classes), batch_size)
    with ExitStack() as stack:
        distributed.on_rank_0(lambda: _hold(stack, job.output_dir))
        plan = distributed.on_rank_0(lambda: _plan(job, samples_per_shard))
        mine = plan.missing[distributed.rank() :: distributed.world_size()]
        error: UserError | None = None
        try:
            _write_shards(job, mine)
        except UserError as met:
            error = met
        distributed.raise_together(error)
        written = sum(part.stop - part.start for part in plan.missing)
        summary = SampleSummary(written, request.count - written, time.monotonic() - started)
        facts = {
            **(description or {}),
            "batch_size_per_rank": batch_size,
            "ranks": distributed.world_size(),
            "seconds": round(summary.seconds, 3),
        }
        distributed.on_rank_0(lambda: _write_manifest(job.output_dir, "complete", plan.identity, plan.shares, facts))
    return summary


@dataclass(frozen=True)
class _Job:
    """What all shards of a run have in common."""

    maker: SampleMaker
    output_dir: Path
    request: SampleRequest
    classes: Sequence[int]
    batch_size: int

    def path(self, part: Part) -> Path:
        return self.output_dir / f"samples_{part.name}.safetensors"


def _hold(stack: ExitStack, folder: Path) -> None:
    stack.enter_context(locked(folder))


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What decides the samples, into how many shares they are divided, and the shards that are not there yet."""

    identity: dict[str, Any]
    shares: int
    missing: list[Part]


def _plan(job: _Job, samples_per_shard: int) -> _Plan:
    """Compare what is wanted with what is in the folder, and make a beginning; on rank 0."""
    identity = _identity(job, samples_per_shard)
    present = {path.name for path in job.output_dir.glob("*.safetensors") if not path.name.startswith(".")}
    shares = distributed.world_size()
    if present or (job.output_dir / MANIFEST_NAME).exists():
        refuse_other_origin(job.output_dir, identity, "choose an empty --output-dir")
        shares = read_manifest(job.output_dir)["shares"]
    parts = divide(job.request.count, shares, samples_per_shard)
    if foreign := sorted(present - {job.path(part).name for part in parts}):
        raise DataError(f"{job.output_dir / foreign[0]}: is no shard of this run; choose an empty --output-dir.")
    missing = [part for part in parts if job.path(part).name not in present]
    missing.sort(key=lambda part: (part.number, part.rank))  # so that as many ranks as shares take one share each
    if missing:
        _write_manifest(job.output_dir, "running", identity, shares, {})
    return _Plan(identity, shares, missing)


def _identity(job: _Job, samples_per_shard: int) -> dict[str, Any]:
    """What decides the samples and their files, as JSON gives it back."""
    identity = {
        **job.maker.identity(),
        "request": asdict(job.request),
        "samples_per_shard": samples_per_shard,
    }
    return json.loads(json.dumps(identity))


def _write_manifest(folder: Path, status: str, identity: dict[str, Any], shares: int, facts: dict[str, Any]) -> None:
    content = {"status": status, **identity, "shares": shares, **facts, "versions": tool_versions()}
    write_json_atomically(folder / MANIFEST_NAME, content)


# --- the samples ------------------------------------------------------------------------------------------------------


def _write_shards(job: _Job, parts: Sequence[Part]) -> None:
    total = sum(part.stop - part.start for part in parts)
    with tqdm(total=total, unit="sample", disable=distributed.rank() != 0, smoothing=0.1) as progress:
        for part in parts:
            indices, batches = range(part.start, part.stop), []
            labels = sample_labels(indices, job.classes, job.request.labels, job.request.seed)
            for batch in in_batches(indices, job.batch_size):
                batches.append(_sample_batch(job, batch, labels[batch[0] - part.start :]))
                progress.update(len(batch))
            columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
            write_shard(job.path(part), {**columns, "labels": labels.to(torch.int32)})


def _sample_batch(job: _Job, indices: list[int], labels: Tensor) -> dict[str, Tensor]:
    """What is stored of these samples; `labels` begins with theirs.

    The batch is filled up with copies, so that the number of samples does not change what is computed for one.
    """
    filled = fill_up(indices, job.batch_size)
    of_batch = torch.tensor(fill_up(labels[: len(indices)].tolist(), job.batch_size))
    columns = job.maker.columns(filled, of_batch, job.request.seed)
    return {name: rows[: len(indices)] for name, rows in columns.items()}
