"""Extract features of an image set: one file per model output and condition.

    <folder>/<prefix>_<condition>.pt             a model with one output
    <folder>/<prefix>_<output>_<condition>.pt    a model with several
    <folder>/<prefix>_<part>_t0.500.pt           a diffusion model, which sees latents of clean images

What is computed for an image depends on neither the batch size (up to rounding) nor the number of ranks: batches are
filled up to one size, and random draws are keyed by names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common import distributed
from common.errors import DataError, UserError
from common.value_range import uint8_to_unit
from evaluation.alignment.conditions import CLEAN, Condition
from evaluation.alignment.config import DiffusionSection, ModelSection
from evaluation.alignment.features import SUFFIXES, FeatureSet, read_features, write_features
from evaluation.alignment.images import AnalysisImages, ConditionedImage, read_square
from evaluation.alignment.models.base import ImageModel
from evaluation.alignment.models.diffusion import DiffusionFeatures, output_name
from evaluation.alignment.stored_latents import StoredLatents
from evaluation.alignment.transforms import ImageTransform, apply_transform
from evaluation.batches import fill_up, in_batches, read_ahead
from evaluation.images import to_tensor

log = logging.getLogger(__name__)


Records = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class ExtractionOptions:
    """How images are read and batched.

    Args:
        resolution: side of the images before transformations; others are resized by Lanczos.
        batch_size: images per batch on each rank.
        workers: threads that read.
    """

    resolution: int
    batch_size: int
    device: torch.device
    workers: int = 4


def feature_path(folder: Path, prefix: str, outputs: Sequence[str], output: str, condition: str, suffix: str) -> Path:
    """Where the features of an output under a condition are."""
    middle = f"_{output}" if len(outputs) > 1 else ""
    return folder / f"{prefix}{middle}_{condition}{suffix}"


def part_path(folder: Path, prefix: str, part: str, t: float, suffix: str) -> Path:
    """Where the features of a part of a diffusion model at a share of noise are."""
    return folder / f"{prefix}_{output_name(part, t)}{suffix}"


Batches = Iterable[tuple[Sequence[str], Mapping[str, Tensor]]]
"""Names, and {output: [B, D]}; copies at the end that fill a batch up repeat the last name."""


def collect(
    outputs: Sequence[str], batches: Batches, records: Records, total: int, title: str
) -> dict[str, FeatureSet]:
    """Features of the batches of all ranks, sorted by name; every rank must call it, and gets all.

    Args:
        batches: of this rank.
        records: what was done to each image.
        total: images of this rank.
        title: heads the progress bar; none without.
    """
    found: dict[str, dict[str, Tensor]] = {output: {} for output in outputs}
    problem: UserError | None = None
    with tqdm(total=total, desc=title, unit="image", disable=distributed.rank() != 0 or not title) as bar:
        try:
            for names, features in batches:
                for output, values in features.items():
                    found[output].update(zip(names, values.float().cpu()))
                bar.update(len(set(names)))
        except UserError as error:
            problem = error
    distributed.raise_together(problem)
    return {output: _gathered(values, records) for output, values in found.items()}


@torch.inference_mode()
def extract_condition(
    model: ImageModel, images: Sequence[ConditionedImage], how: ExtractionOptions, title: str = ""
) -> dict[str, FeatureSet]:
    """Features of images under one condition, sorted by name; every rank must call it, and gets all.

    Args:
        images: all of them; ranks share them.
        title: heads the progress bar.

    Raises: DataError if an image is not readable.
    """
    ordered = sorted(images, key=lambda image: (image.transform.scale, image.file.key))
    share = ordered[distributed.rank() :: distributed.world_size()]
    batches = ((names, model.features(pixels.to(how.device), names)) for names, pixels in _batches(share, how))
    records = {image.file.key: image.record for image in images}
    return collect(model.outputs, batches, records, len(share), title)


@torch.inference_mode()
def extract_parts(
    model: DiffusionFeatures,
    stored: StoredLatents,
    t: float,
    batch_size: int,
    device: torch.device,
    title: str = "",
) -> dict[str, FeatureSet]:
    """Features of a diffusion model's parts for stored latents at a share of noise; else as `extract_condition`."""
    share = range(len(stored))[distributed.rank() :: distributed.world_size()]
    filled = (fill_up(numbers, batch_size) for numbers in in_batches(share, batch_size))
    clean = (stored.batch(numbers, device) for numbers in filled)
    batches = ((batch.names, model.features(batch, t)) for batch in clean)
    return collect(model.parts, batches, {name: {"mode": CLEAN} for name in stored.names}, len(share), title)


def _batches(images: Iterable[ConditionedImage], how: ExtractionOptions) -> Iterator[tuple[list[str], Tensor]]:
    """Names and transformed images [B, 3, H, W] in [0, 1], in batches of one size, all of one scale."""

    def read(image: ConditionedImage) -> tuple[str, Tensor]:
        pixels = to_tensor(read_square(image.file, how.resolution))[None]
        return image.file.key, apply_transform(pixels, ImageTransform(rotation=image.transform.rotation))[0]

    with ThreadPoolExecutor(how.workers) as pool:
        for scale, group in groupby(images, key=lambda image: image.transform.scale):
            turned = read_ahead(pool, read, group, ahead=2 * how.batch_size + how.workers)
            for batch in in_batches(turned, how.batch_size):
                names, pixels = zip(*fill_up(batch, how.batch_size))
                yield list(names), apply_transform(uint8_to_unit(torch.stack(pixels)), ImageTransform(scale=scale))


def _gathered(share: Mapping[str, Tensor], records: Records) -> FeatureSet:
    names = list(share)
    own = (names, torch.stack([share[name] for name in names]) if names else torch.empty(0))
    parts = distributed.all_gather_objects(own)
    rows = {name: row for names, values in parts for name, row in zip(names, values)}
    ordered = tuple(sorted(rows))
    return FeatureSet(torch.stack([rows[name] for name in ordered]), ordered, tuple(records[name] for name in ordered))


def extract_to_folder(
    model: ImageModel,
    section: ModelSection,
    images: AnalysisImages,
    conditions: Sequence[Condition],
    folder: Path,
    prefix: str,
    how: ExtractionOptions,
    suffix: str = ".pt",
) -> int:
    """Write the features of all conditions; files that are there already are kept if they are the same features.

    Args:
        section: describes the model; stored in the files, with hashes of weights and images.
        prefix: what the names of the files start with.

    Returns: number of conditions that were extracted.
    Raises: UserError for images that are missing or not readable.
    """
    extracted = 0
    for condition in conditions:
        conditioned = distributed.on_rank_0(lambda condition=condition: images.under(condition))
        shared = distributed.on_rank_0(lambda condition=condition: _identity(model, section, images, condition, how))
        files = [
            _File(
                output,
                feature_path(folder, prefix, model.outputs, output, condition.name, suffix),
                {**shared, "feature_name": output},
            )
            for output in model.outputs
        ]
        title = f"{prefix} {condition.name}"
        extracted += _complete(files, title, partial(extract_condition, model, conditioned, how, title))
    return extracted


def extract_parts_to_folder(
    model: DiffusionFeatures,
    section: DiffusionSection,
    stored: StoredLatents,
    folder: Path,
    prefix: str,
    batch_size: int,
    device: torch.device,
    suffix: str = ".pt",
) -> int:
    """Write the features of a diffusion model's parts at all its timesteps; else as `extract_to_folder`.

    Returns: number of timesteps that were extracted.
    """
    shared = distributed.on_rank_0(
        lambda: {
            "model": _model_facts(section, leave_out={"parts", "timesteps"}),
            "weights_sha256": model.weights_sha256,
            "latents_sha256": stored.sha256(),
            "num_images": len(stored),
            "sorted": True,
            "sorted_by": "name",
        }
    )
    extracted = 0
    for t in model.timesteps:
        files = [
            _File(part, part_path(folder, prefix, part, t, suffix), {**shared, "feature_name": part, "timestep": t})
            for part in model.parts
        ]
        title = f"{prefix} t {t:.3f}"
        extracted += _complete(files, title, partial(extract_parts, model, stored, t, batch_size, device, title))
    return extracted


@dataclass(frozen=True)
class _File:
    """A feature file that is wanted.

    Args:
        output: of the model.
        facts: what decides the features, and what the file says of them besides.
    """

    output: str
    path: Path
    facts: Mapping[str, Any]

    def is_current(self) -> bool:
        """Whether it is there, with the same facts."""
        if not self.path.is_file():
            return False
        try:
            return read_features(self.path).facts == self.facts
        except UserError as error:
            log.warning("%s; it is written again.", error)
            return False

    def write(self, found: FeatureSet) -> None:
        write_features(self.path, replace(found, facts=dict(self.facts)))


def _complete(files: Sequence[_File], title: str, extract: Callable[[], Mapping[str, FeatureSet]]) -> bool:
    """Extract and write files of one model unless all are current; returns whether it was necessary."""
    if distributed.on_rank_0(lambda: all(file.is_current() for file in files)):
        log.info("%s: kept", title)
        return False
    found = extract()

    def write() -> None:
        for file in files:
            file.write(found[file.output])

    distributed.on_rank_0(write)
    return True


def _identity(
    model: ImageModel, section: ModelSection, images: AnalysisImages, condition: Condition, how: ExtractionOptions
) -> dict[str, Any]:
    """What decides the features of all outputs, in the form in which files carry it."""
    return {
        "model": _model_facts(section),
        "weights_sha256": model.weights_sha256,
        "images_sha256": images.sha256(condition),
        "num_images": len(images.clean),
        "condition": condition.name,
        "resolution": how.resolution,
        "protocol": "uniform",
        "sorted": True,
    }


def _model_facts(section: ModelSection, leave_out: Set[str] = frozenset()) -> dict[str, Any]:
    return {"kind": section.kind, **section.model_dump(mode="json", exclude=set(leave_out))}


def find_conditions(prefix: str, conditions: Iterable[str]) -> dict[str, FeatureSet]:
    """Read `<prefix>_<condition>.pt` (or `.safetensors`) of every condition that has a file.

    Raises: DataError if none has, or a file is damaged.
    """
    found = {}
    for condition in conditions:
        paths = [Path(f"{prefix}_{condition}{suffix}") for suffix in SUFFIXES]
        if path := next((path for path in paths if path.is_file()), None):
            found[condition] = read_features(path)
    if not found:
        outputs = sorted({str(path.with_suffix("")).removesuffix(f"_{CLEAN}") for path in _clean_files_of(prefix)})
        hint = f"the model has several outputs; name one: {', '.join(outputs)}." if outputs else "see extract.py."
        raise DataError(f"{prefix}_{CLEAN}.pt: does not exist, nor do files of other conditions; {hint}")
    return found


def _clean_files_of(prefix: str) -> Iterator[Path]:
    """Files of a model's outputs on clean images."""
    start = Path(prefix)
    for path in start.parent.glob(f"*_{CLEAN}.*"):
        if path.suffix in SUFFIXES and path.name.startswith(f"{start.name}_"):
            yield path
