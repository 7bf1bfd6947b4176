"""Reconstruct a set of images with a tokenizer.

images of a folder or of shards -> square crops -> latent z -> decoder -> PNG files of equal names in `inputs/` and
`outputs/`

What is written for an image depends on the image, the model and the protocol, not on its neighbours, on how many images
or ranks there are, or on what was there before: its posterior noise is keyed by (seed, name), every batch has the full
size, and ranks only share the list. Another batch size may make kernels add in another order; where a value lies on the
edge between two 8-bit levels, that can move it by one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import distributed
from common.errors import DataError, UserError
from common.files import write_json_atomically
from common.value_range import signed_to_unit, unit_to_uint8
from evaluation.batches import Turns, fill_up, in_batches, read_ahead
from evaluation.images import (
    CROPS,
    ImageSet,
    InputImage,
    UnreadableImage,
    open_images,
    png_name,
    read_input,
    to_tensor,
    write_png,
)
from evaluation.output_folder import MANIFEST_NAME, refuse_foreign, refuse_other_origin, tool_versions
from evaluation.posterior import LatentChoice, encode_images
from networks.conditioning import Labels
from networks.fingerprint import weights_fingerprint

INPUT_FOLDER = "inputs"
OUTPUT_FOLDER = "outputs"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Protocol:
    """What decides the pixels of a reconstruction, besides the image and the model's weights.

    Args:
        resolution: side of the square crop in pixels.
        crop: how an image is cropped, a name of `evaluation.images.CROPS`.
        latent: "sample" draws z from the posterior, "mode" takes its mean. A discrete latent is the same in both.
        seed: key of the posterior noise.
    """

    resolution: int
    crop: str = "torchvision"
    latent: LatentChoice = "sample"
    seed: int = 0

    def __post_init__(self) -> None:
        CROPS[self.crop]
        if self.latent not in ("sample", "mode"):
            raise UserError(f"latent: found {self.latent!r}, expected 'sample' or 'mode'.")
        if self.resolution < 1:
            raise UserError(f"resolution: found {self.resolution}, expected at least 1.")


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Crop:
    """An image that was read: uint8 [3, R, R]."""

    image: InputImage
    pixels: Tensor


@dataclass(frozen=True)
class Summary:
    """Counts of a finished reconstruction, over all ranks.

    Args:
        found: images that were to be reconstructed.
        reconstructed: images written by this call.
        kept: images whose files were there already (`skip_existing`).
        unreadable: images that could not be read; nothing was written for them.
        seconds: wall time.
    """

    found: int
    reconstructed: int
    kept: int
    unreadable: tuple[Unreadable, ...]
    seconds: float


@torch.inference_mode()
def reconstruct_batch(
    model: nn.Module, images: Tensor, keys: Sequence[str], protocol: Protocol, labels: Labels = None
) -> Tensor:
    """Reconstruct a batch.

    Args:
        model: a tokenizer in eval mode.
        images: uint8 [B, 3, R, R], on the model's device.
        keys: one per image; with the seed it decides the posterior noise.
        labels: what a conditional decoder takes besides the latent.
    Returns: uint8 [B, 3, R, R], rounded as the tokenizer's published PNG files are.
    """
    z = encode_images(model, images, keys, protocol.latent, protocol.seed).z
    return unit_to_uint8(signed_to_unit(model.decode(z, labels).reconstruction), model.png_rounding)


def reconstruct_share(
    model: nn.Module,
    images: Sequence[InputImage],
    output_dir: str | Path,
    protocol: Protocol,
    *,
    batch_size: int,
    device: torch.device,
    workers: int = 4,
    show_progress: bool = False,
) -> list[Unreadable]:
    """Reconstruct one rank's images; reading, computing and writing overlap.

    The last batch is filled up with copies, so that the number of images does not change what is computed for one.

    Returns: the images that could not be read.
    """
    output_dir = Path(output_dir)
    turns = Turns(device)
    write = turns.of_files(write_png)
    unreadable: list[Unreadable] = []
    progress = tqdm(total=len(images), unit="image", disable=not show_progress, smoothing=0.1)

    @turns.of_files
    def read(image: InputImage) -> Crop | Unreadable:
        try:
            return Crop(image, to_tensor(CROPS[protocol.crop](read_input(image), protocol.resolution)))
        except UnreadableImage as error:
            return Unreadable(str(image), str(error))

    def crops(results: Iterable[Crop | Unreadable]) -> Iterator[Crop]:
        for result in results:
            if isinstance(result, Unreadable):
                log.warning("%s: not readable, left out (%s)", result.name, result.reason)
                unreadable.append(result)
                progress.update()
            else:
                yield result

    with progress, ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers:
        pending: deque[Future] = deque()
        for batch in in_batches(crops(read_ahead(readers, read, images, ahead=2 * batch_size + workers)), batch_size):
            filled = fill_up(batch, batch_size)
            pixels = torch.stack([crop.pixels for crop in filled]).to(device)
            with turns.of_network():
                outputs = reconstruct_batch(model, pixels, [crop.image.key for crop in filled], protocol).cpu()
            for crop, output in zip(batch, outputs):
                for folder, content in ((INPUT_FOLDER, crop.pixels), (OUTPUT_FOLDER, output)):
                    path = output_dir / folder / png_name(crop.image)
                    pending.append(writers.submit(write, path, content))
            while len(pending) > 4 * batch_size:
                pending.popleft().result()
            progress.update(len(batch))
        for future in pending:
            future.result()
    return unreadable


def reconstruct_folder(
    model: nn.Module,
    input_dir: str | Path,
    output_dir: str | Path,
    protocol: Protocol,
    *,
    batch_size: int,
    device: torch.device,
    recursive: bool = False,
    num_images: int | None = None,
    skip_existing: bool = False,
    workers: int = 4,
    description: dict[str, Any] | None = None,
) -> Summary:
    """Reconstruct a set of images on all ranks; `output_dir` gets `inputs/`, `outputs/` and `manifest.json`.

    Args:
        input_dir: folder of images, folder of *.tar shards, or one shard. What is wrong with shards counts among the
            images that could not be read.
        recursive: also search sub-folders for images.
        num_images: only the first so many by name; of shards, as they lie in them.
        skip_existing: leave images alone whose two files are there, if they come from the same weights and protocol.
        description: what else the manifest should say of the run.
    Raises: DataError before any work if there is no image, if two images share a name, or if the output folder
        holds files that do not belong to this reconstruction.
    """
    started = time.monotonic()
    output_dir = Path(output_dir)
    if recursive and output_dir.resolve().is_relative_to(Path(input_dir).resolve()):
        raise DataError(f"{output_dir}: lies inside the input folder {input_dir}, which is searched recursively.")
    inputs = open_images(input_dir, recursive)
    images = inputs.images[:num_images]
    plan = distributed.on_rank_0(lambda: _plan(model, images, output_dir, protocol, skip_existing))
    share = [images[index] for index in plan.to_do[distributed.rank() :: distributed.world_size()]]
    own = reconstruct_share(
        model,
        share,
        output_dir,
        protocol,
        batch_size=batch_size,
        device=device,
        workers=workers,
        show_progress=distributed.rank() == 0,
    )
    failed = [unreadable for part in distributed.all_gather_objects(own) for unreadable in part]
    unreadable = sorted([*failed, *_lost_in_shards(inputs)], key=lambda image: image.name)
    summary = Summary(
        found=len(images) + len(inputs.problems),
        reconstructed=len(plan.to_do) - len(failed),
        kept=len(images) - len(plan.to_do),
        unreadable=tuple(unreadable),
        seconds=time.monotonic() - started,
    )
    if distributed.rank() == 0:
        facts = {"batch_size_per_rank": batch_size, "ranks": distributed.world_size(), "device": str(device.type)}
        _write_manifest(output_dir, plan.identity, "complete", {**(description or {}), **facts}, summary)
    distributed.barrier()
    return summary


def _lost_in_shards(inputs: ImageSet) -> list[Unreadable]:
    """What the index of shards found to be unusable, in the words of an image that cannot be read."""
    return [
        Unreadable(f"{problem.shard}: {problem.key}" if problem.key else problem.shard, problem.kind)
        for problem in inputs.problems
    ]


@dataclass(frozen=True)
class _Plan:
    """Numbers of the images that are not there yet, and what the manifest says of where they come from."""

    to_do: list[int]
    identity: dict[str, Any]


def _plan(
    model: nn.Module, images: Sequence[InputImage], output_dir: Path, protocol: Protocol, skip_existing: bool
) -> _Plan:
    identity = {
        "protocol": asdict(protocol),
        "weights_sha256": weights_fingerprint(model.state_dict()),
        "png_rounding": model.png_rounding,
    }
    names = {png_name(image) for image in images}
    for folder in (output_dir / INPUT_FOLDER, output_dir / OUTPUT_FOLDER):
        refuse_foreign(folder, names)
    to_do = list(range(len(images)))
    if skip_existing:
        to_do = [index for index in to_do if not _is_done(output_dir, images[index])]
        if len(to_do) < len(images):
            refuse_other_origin(output_dir, identity, "leave out --skip-existing")
    for index in to_do:  # so that an interrupted run never leaves files of two models side by side
        for folder in (INPUT_FOLDER, OUTPUT_FOLDER):
            (output_dir / folder / png_name(images[index])).unlink(missing_ok=True)
    _write_manifest(output_dir, identity, "running", {}, None)
    return _Plan(to_do, identity)


def _is_done(output_dir: Path, image: InputImage) -> bool:
    return all((output_dir / folder / png_name(image)).is_file() for folder in (INPUT_FOLDER, OUTPUT_FOLDER))


def _write_manifest(
    output_dir: Path, identity: dict[str, Any], status: str, facts: dict[str, Any], summary: Summary | None
) -> None:
    content = {
        "status": status,
        **identity,
        **facts,
        "versions": tool_versions(),
    }
    if summary is not None:
        content["counts"] = {
            "found": summary.found,
            "reconstructed": summary.reconstructed,
            "kept": summary.kept,
            "unreadable": len(summary.unreadable),
        }
        content["unreadable"] = [asdict(item) for item in summary.unreadable]
        content["seconds"] = round(summary.seconds, 3)
    write_json_atomically(output_dir / MANIFEST_NAME, content)
