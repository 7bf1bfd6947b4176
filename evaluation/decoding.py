"""Decode sampled latents or tokens into PNG files, an .npz file for ADM's evaluator, or both.

shards of latents, or of tokens -> latents -> decoder -> images in order of name -> `<name>.png`, rows of `arr_0`
labels -> labels.json

What becomes of a sample depends on the sample and the model alone: not on its neighbours, the number of ranks, or
whether the run was interrupted. Another batch size may make kernels add in another order, as in
`evaluation.reconstruction`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from common import distributed
from common.errors import DataError, UserError
from common.files import write_json_atomically
from common.lock import locked
from common.value_range import Rounding, signed_to_unit, unit_to_uint8
from data.sample_shards import (
    Sample,
    SampleShard,
    label_records,
    number_samples,
    open_samples,
    samples_fingerprint,
)
from data.token_kind import TokenKind
from evaluation.batches import fill_up, in_batches
from evaluation.decode_outputs import NpzParts, Output, PngFolder
from evaluation.output_folder import MANIFEST_NAME, read_manifest, refuse_foreign, refuse_other_origin, tool_versions
from networks.conditioning import Labels
from networks.fingerprint import weights_fingerprint

LABELS_NAME = "labels.json"
PARTS_NAME = "npz_parts"
IMAGES_PER_PART = 64


@dataclass(frozen=True)
class OutputSize:
    """How large decoded images become, by bicubic interpolation before they are rounded.

    Args:
        side: in pixels; None: as they are decoded.
        antialias: in that; published samples of VFMTok are not.
    """

    side: int | None = None
    antialias: bool = False


@dataclass(frozen=True)
class DecodePlan:
    """What is decoded, and under which names.

    Args:
        input_dir: folder of shards.
        numbering_ranks: names are those that so many ranks of the reference would give.
        max_images_per_rank: only the first so many of each of these ranks.
        skip_bad_shards: leave out shards that cannot be read.
        size: how large images become.
    """

    input_dir: Path
    numbering_ranks: int = 1
    max_images_per_rank: int | None = None
    skip_bad_shards: bool = False
    size: OutputSize = OutputSize()


@dataclass(frozen=True)
class DecodeTargets:
    """Where images go.

    Args:
        output_dir: gets the manifest, the labels and, with `pngs`, the images.
        npz: gets all images as `arr_0`; None: no such file.
        skip_existing: keep images that the same weights and latents already gave.
    """

    output_dir: Path
    pngs: bool = True
    npz: Path | None = None
    skip_existing: bool = True

    def __post_init__(self) -> None:
        if not self.pngs and self.npz is None:
            raise UserError("nothing to write: give --output-npz, or leave out --no-png.")


@dataclass(frozen=True)
class DecodeSummary:
    """Counts of a finished run, over all ranks: images in all, decoded by this call, kept from earlier ones."""

    images: int
    decoded: int
    kept: int
    problems: tuple[str, ...]
    seconds: float


# --- decoding --------------------------------------------------------------------------------------------------------


class SampleReader:
    """Reads single samples; the shard that was read last stays open."""

    def __init__(self):
        self._path: Path | None = None
        self._file: Any = None

    def read(self, sample: Sample) -> Tensor:
        """A latent [C, h, w], fp32, or tokens [K, h, w], int64. Raises DataError if a value is not finite."""
        if sample.shard.path != self._path:
            self._path = sample.shard.path
            self._file = safe_open(self._path, framework="pt")
        stored = self._file.get_slice(sample.shard.content)[sample.row]
        if sample.shard.content == "tokens":
            return stored.long()
        z = stored.float()
        if not z.isfinite().all():
            raise DataError(f"{self._path}: latents: row {sample.row} holds values that are not finite.")
        return z


def to_pixels(images: Tensor, rounding: Rounding, size: OutputSize = OutputSize()) -> Tensor:
    """Decoded images [B, 3, H, W] in [-1, 1] -> uint8 [B, 3, H, W], or [B, 3, side, side].

    Args:
        rounding: of a tokenizer's published PNG files, see `unit_to_uint8`.
    """
    side = size.side
    if side is not None and tuple(images.shape[-2:]) != (side, side):
        images = F.interpolate(images.float(), size=(side, side), mode="bicubic", antialias=size.antialias)
    return unit_to_uint8(signed_to_unit(images), rounding)


@torch.inference_mode()
def decode_batch(model: nn.Module, samples: Tensor, labels: Labels = None, size: OutputSize = OutputSize()) -> Tensor:
    """Latents [B, C, h, w] or tokens [B, K, h, w] -> uint8 [B, 3, H, W], rounded as published PNG files are."""
    z = samples if samples.is_floating_point() else model.tokens_to_latent(samples)
    return to_pixels(model.decode(z, labels).reconstruction, model.png_rounding, size)


def decode_share(
    model: nn.Module,
    samples: Sequence[Sample],
    numbers: Sequence[int],
    outputs: Sequence[Output],
    *,
    batch_size: int,
    device: torch.device,
    labels: Callable[[Sequence[Sample]], Labels],
    size: OutputSize = OutputSize(),
    workers: int = 4,
    show_progress: bool = False,
) -> None:
    """Decode one rank's images; reading, computing and writing overlap.

    Args:
        samples: all samples.
        numbers: which of them, ascending.
        labels: what the decoder takes besides the latents of a batch.
    """
    reader = SampleReader()
    with (
        tqdm(total=len(numbers), unit="image", disable=not show_progress) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        pending: deque[Future] = deque()
        for batch in in_batches(numbers, batch_size):
            filled = [samples[number] for number in fill_up(batch, batch_size)]
            read = torch.stack(fill_up([reader.read(sample) for sample in filled[: len(batch)]], batch_size))
            images = decode_batch(model, read.to(device), labels(filled), size).cpu()
            for number, image in zip(batch, images):
                tasks = [output.add(number, image) for output in outputs if not output.is_done(number)]
                pending.extend(pool.submit(task) for task in tasks if task is not None)
            while len(pending) > 4 * batch_size:
                pending.popleft().result()
            progress.update(len(batch))
        for future in pending:
            future.result()


def decode_folder(
    model: nn.Module,
    plan: DecodePlan,
    targets: DecodeTargets,
    *,
    batch_size: int,
    device: torch.device,
    class_texts: Mapping[int, str] | None = None,
    workers: int = 4,
    images_per_part: int = IMAGES_PER_PART,
    description: dict[str, Any] | None = None,
) -> DecodeSummary:
    """Decode a folder of shards on all ranks.

    The output folder gets `manifest.json` and, if the shards have labels, `labels.json`. A run that was interrupted
    goes on where it was, with the same files in the end.

    Args:
        class_texts: class index -> text, for the labels file and for decoders that read class texts.
        images_per_part: how finely the .npz file can be resumed, and the unit that ranks share.
        description: what else the manifest should say of the run.
    Raises: DataError before any work if shards are damaged or do not fit the model, or if the output folder holds files
        of another model or of other latents.
    """
    started = time.monotonic()
    with ExitStack() as held:
        work = distributed.on_rank_0(lambda: _prepare(model, plan, targets, class_texts, images_per_part, held))
        numbers = [n for n in work.to_do if n // images_per_part % distributed.world_size() == distributed.rank()]
        error = None
        try:
            decode_share(
                model,
                work.samples,
                numbers,
                work.outputs,
                batch_size=batch_size,
                device=device,
                labels=_conditioner(model, device, class_texts),
                size=plan.size,
                workers=workers,
                show_progress=distributed.rank() == 0,
            )
        except UserError as met:
            error = met
        distributed.raise_together(error)
        images, decoded = len(work.samples), len(work.to_do)
        summary = DecodeSummary(images, decoded, images - decoded, work.problems, time.monotonic() - started)
        facts = {"batch_size_per_rank": batch_size, "ranks": distributed.world_size(), "device": device.type}
        distributed.on_rank_0(lambda: _finish(targets, work, summary, {**(description or {}), **facts}))
    return summary


@dataclass(frozen=True)
class _Work:
    """What is to be done, as rank 0 found it."""

    samples: list[Sample]
    to_do: list[int]
    outputs: list[Output]
    identity: dict[str, Any]
    problems: tuple[str, ...]


def _prepare(
    model: nn.Module,
    plan: DecodePlan,
    targets: DecodeTargets,
    class_texts: Mapping[int, str] | None,
    images_per_part: int,
    held: ExitStack,
) -> _Work:
    opened = open_samples(plan.input_dir, plan.skip_bad_shards)
    _check_fit(model, plan.input_dir, opened.shards)
    samples = number_samples(opened.shards, plan.numbering_ranks, plan.max_images_per_rank)
    if not samples:
        raise DataError(f"{plan.input_dir}: its {len(opened.shards)} shards hold no samples.")
    _check_labels(model, samples, class_texts)
    identity = {
        "weights_sha256": weights_fingerprint(model.state_dict()),
        "samples_sha256": samples_fingerprint(opened.shards),
        "numbering_ranks": plan.numbering_ranks,
        "png_rounding": model.png_rounding,
        "size": asdict(plan.size),
    }
    names = [sample.name for sample in samples]
    refuse_foreign(targets.output_dir, set(names) if targets.pngs else set())
    held.enter_context(locked(targets.output_dir))
    _remove_left_overs(targets, names)
    outputs = _outputs(targets, names, images_per_part)
    done = [{n for n in range(len(names)) if output.is_done(n)} for output in outputs]
    if any(done):
        refuse_other_origin(targets.output_dir, identity, "pass --no-skip-existing")
    to_do = sorted(set(range(len(names))) - set.intersection(*done))
    work = _Work(samples, to_do, outputs, identity, opened.problems)
    earlier_npz = _read_manifest(targets.output_dir).get("npz") if any(done) else None
    _write_manifest(targets, work, {"status": "running", "npz": earlier_npz})
    if records := label_records(samples, class_texts):
        write_json_atomically(targets.output_dir / LABELS_NAME, records)
    return work


def _outputs(targets: DecodeTargets, names: Sequence[str], images_per_part: int) -> list[Output]:
    outputs: list[Output] = [PngFolder(targets.output_dir, names)] if targets.pngs else []
    if targets.npz is not None:
        parts, written = targets.output_dir / PARTS_NAME, _read_manifest(targets.output_dir).get("npz")
        is_finished = targets.npz.is_file() and written == _npz_record(targets.npz, len(names))
        outputs.append(NpzParts(targets.npz, parts, len(names), images_per_part, is_finished))
    return outputs


def _remove_left_overs(targets: DecodeTargets, names: Sequence[str]) -> None:
    """Remove what a killed run left half written, and what is to be written again.

    So an interrupted run never leaves images of two models side by side.
    """
    places = [targets.output_dir.glob(".*.partial")]
    if targets.npz is not None:
        places.append(targets.npz.parent.glob(f".{targets.npz.name}.*.partial"))
    if not targets.skip_existing:
        places.append(targets.output_dir / name for name in [*names, MANIFEST_NAME])
        shutil.rmtree(targets.output_dir / PARTS_NAME, ignore_errors=True)
    for place in places:
        for path in place:
            path.unlink(missing_ok=True)


def _npz_record(path: Path, images: int) -> dict[str, Any]:
    """By which a later run knows an .npz file again."""
    return {"path": str(path.resolve()), "images": images, "bytes": path.stat().st_size}


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_manifest(targets: DecodeTargets, work: _Work, facts: dict[str, Any]) -> None:
    fixed = {"images": len(work.samples), "left_out": work.problems}
    content = {**work.identity, **fixed, **facts, "versions": tool_versions()}
    write_json_atomically(targets.output_dir / MANIFEST_NAME, content)


def _finish(targets: DecodeTargets, work: _Work, summary: DecodeSummary, facts: dict[str, Any]) -> None:
    for output in work.outputs:
        output.finish()
    record = {} if targets.npz is None else {"npz": _npz_record(targets.npz, len(work.samples))}
    counts = {"decoded": summary.decoded, "kept": summary.kept, "seconds": round(summary.seconds, 3)}
    _write_manifest(targets, work, {"status": "complete", **record, "counts": counts, **facts})


def _check_fit(model: nn.Module, folder: Path, shards: Sequence[SampleShard]) -> None:
    whole = [shard for shard in shards if shard.content]
    if whole[0].content == "tokens":
        _check_tokens(model, folder, whole)
    else:
        _check_channels(model, whole)


def _check_channels(model: nn.Module, shards: Sequence[SampleShard]) -> None:
    side = model.config.img_resolution
    expected = model.latent_shape(side, side)[0]
    for shard in shards:
        if shard.shape[0] != expected:
            raise DataError(
                f"{shard.path}: latents: found {shard.shape[0]} channels ({list(shard.shape)} per sample), expected "
                f"{expected}, those of this tokenizer; give the one that the diffusion model was trained on."
            )


_OTHER_TOKENIZER = "give the tokenizer whose tokens the model was trained on as --vae-pth."


def _check_tokens(model: nn.Module, folder: Path, shards: Sequence[SampleShard]) -> None:
    """Refuse tokens of another tokenizer, as far as the manifest of their sampler and they themselves tell."""
    if not model.is_discrete:
        raise DataError(
            f"{shards[0].path}: found tokens, but this tokenizer has none, for its latent is continuous; "
            f"{_OTHER_TOKENIZER}"
        )
    books, codes = len(model.quantizer.codebooks), model.quantizer.size
    if (folder / MANIFEST_NAME).is_file() and (stated := read_manifest(folder).get("tokens")) is not None:
        kind = TokenKind.from_json(stated, str(folder / MANIFEST_NAME))
        if kind.codes != codes:
            raise DataError(
                f"{folder / MANIFEST_NAME}: found tokens of a codebook of {kind.codes} codes, but that of this "
                f"tokenizer has {codes}; {_OTHER_TOKENIZER}"
            )
        if kind.tokenizer_sha256 not in (None, weights_fingerprint(model.state_dict())):
            raise DataError(
                f"{folder / MANIFEST_NAME}: found tokens of a tokenizer with the fingerprint {kind.tokenizer_sha256}, "
                f"which is not that of this one; {_OTHER_TOKENIZER}"
            )
    for shard in shards:
        if shard.shape[0] != books:
            raise DataError(
                f"{shard.path}: tokens: found those of {shard.shape[0]} codebooks ({list(shard.shape)} per sample), "
                f"expected {books}, those of this tokenizer; {_OTHER_TOKENIZER}"
            )
        with safe_open(shard.path, framework="pt") as file:
            tokens = file.get_tensor("tokens").long().flatten(1)
        if len(tokens) and (row := ((tokens < 0) | (tokens >= codes)).any(dim=1).nonzero()).numel():
            number = int(row[0])
            low, high = (int(bound) for bound in tokens[number].aminmax())
            raise DataError(
                f"{shard.path}: tokens: row {number}: found {low} to {high}, expected 0 to {codes - 1}, the codes of "
                f"this tokenizer; {_OTHER_TOKENIZER}"
            )


# --- labels of conditional decoders ----------------------------------------------------------------------------------


def _check_labels(model: nn.Module, samples: Sequence[Sample], class_texts: Mapping[int, str] | None) -> None:
    """Refuse before any work what a conditional decoder cannot be given."""
    if not model.config.conditional:
        return
    decoder = model.config.decoder
    if decoder.label_type == "text":
        raise UserError("--vae-pth: this decoder is conditional on free texts, which shards of latents do not have.")
    if decoder.label_type == "cls2text" and class_texts is None:
        raise UserError("--class-index-json: missing; this decoder is conditional on the texts of classes.")
    known = range(decoder.label_dim) if decoder.label_type == "cls2id" else class_texts
    for sample in samples:
        if sample.label not in known:
            raise DataError(
                f"{sample.shard.path}: labels: row {sample.row}: found {sample.label}, expected one of the "
                f"{len(known)} classes that this conditional decoder knows."
            )


def _conditioner(
    model: nn.Module, device: torch.device, class_texts: Mapping[int, str] | None
) -> Callable[[Sequence[Sample]], Labels]:
    """What a decoder takes besides the latents of some samples."""
    if not model.config.conditional:
        return lambda samples: None
    decoder = model.config.decoder
    if decoder.label_type == "cls2id":
        classes = decoder.label_dim
        return lambda samples: F.one_hot(torch.tensor([s.label for s in samples]), classes).to(device, torch.float32)
    return lambda samples: [class_texts[s.label] for s in samples]
