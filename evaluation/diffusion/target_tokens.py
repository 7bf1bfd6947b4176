"""Computes the tokens of REG's target encoders once, for trainings that read them from disk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common import distributed
from common.errors import DataError, UserError
from common.files import write_json_atomically
from common.lock import locked
from data.reg_latents import RegSource
from data.target_tokens import MANIFEST_FILE, items_fingerprint, tokens_file
from evaluation.batches import fill_up, in_batches
from evaluation.output_folder import refuse_other_origin, tool_versions, write_shard
from networks.diffusion.target_features import TargetEncoders
from networks.fingerprint import weights_fingerprint

ITEMS_PER_FILE = 500  # 200 MB of DINOv2-B's tokens in half precision


@dataclass(frozen=True)
class TokensSummary:
    """Items of a finished folder: written in this call, and there already."""

    written: int
    kept: int


def write_target_tokens(
    encoders: TargetEncoders,
    vfm_names: Sequence[str],
    source: RegSource,
    output_dir: Path,
    *,
    dtype: torch.dtype,
    batch_size: int,
    device: torch.device,
) -> TokensSummary:
    """Encode the images of all items on all ranks; every rank must call it. Finished files are kept.

    Args:
        encoders: on `device`.
        output_dir: empty, or with what an interrupted run of the same encoders and items has left.
        dtype: in which the tokens are stored.
        batch_size: images per batch on each rank.
    Raises: DataError if the folder holds something else, an image cannot be read, its tokens are not finite, or the
        disk is full.
    """
    identity = {
        "target_encoders": {"vfm_names": list(vfm_names), "sha256": weights_fingerprint(encoders.state_dict())},
        "tokens_per_side": encoders.side,
        "dtype": str(dtype).removeprefix("torch."),
        "items": len(source),
        "items_sha256": items_fingerprint(source),
        "items_per_file": ITEMS_PER_FILE,
    }
    starts = range(0, len(source), ITEMS_PER_FILE)
    with ExitStack() as stack:
        distributed.on_rank_0(lambda: _hold(stack, output_dir))
        missing = distributed.on_rank_0(lambda: _begin(output_dir, identity, starts))
        error: UserError | None = None
        try:
            for first in tqdm(_share(missing), unit="file", disable=distributed.rank() != 0):
                items = range(first, min(first + ITEMS_PER_FILE, len(source)))
                write_shard(
                    output_dir / tokens_file(first), _encode(encoders, source, items, batch_size, device, dtype)
                )
        except UserError as met:
            error = met
        distributed.raise_together(error)
        distributed.on_rank_0(lambda: _write_manifest(output_dir, identity, "complete"))
    written = sum(min(ITEMS_PER_FILE, len(source) - first) for first in missing)
    return TokensSummary(written, len(source) - written)


def _share(missing: Sequence[int]) -> Sequence[int]:
    return missing[distributed.rank() :: distributed.world_size()]


def _hold(stack: ExitStack, folder: Path) -> None:
    stack.enter_context(locked(folder))


def _begin(folder: Path, identity: dict, starts: Sequence[int]) -> list[int]:
    """The first items of the files that are not there yet; on rank 0."""
    present = {path.name for path in folder.glob("*.safetensors") if not path.name.startswith(".")}
    if present or (folder / MANIFEST_FILE).exists():
        refuse_other_origin(folder, identity, "choose an empty --output-dir")
    missing = [first for first in starts if tokens_file(first) not in present]
    if missing:
        _write_manifest(folder, identity, "running")
    return missing


def _write_manifest(folder: Path, identity: dict, status: str) -> None:
    write_json_atomically(folder / MANIFEST_FILE, {"status": status, **identity, "versions": tool_versions()})


def _encode(
    encoders: TargetEncoders,
    source: RegSource,
    items: Sequence[int],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The tokens of some items by the name of their tensor, on the CPU."""
    parts: list[list[Tensor]] = []
    for batch in in_batches(items, batch_size):
        images = torch.stack(fill_up([source.image(index) for index in batch], batch_size)).to(device)
        stored = [tokens[: len(batch)].to("cpu", dtype) for tokens in encoders(images).tokens]
        _require_finite(stored, [source.name(index) for index in batch])
        parts.append(stored)
    return {f"tokens_{i}": torch.cat(rows) for i, rows in enumerate(zip(*parts))}


def _require_finite(stored: Sequence[Tensor], names: Sequence[str]) -> None:
    for number, tokens in enumerate(stored):
        finite = tokens.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            raise DataError(
                f"{names[finite.index(False)]}: tokens of target encoder {number} hold values that are not finite; its "
                "weights are damaged, or --dtype is too narrow for them."
            )
