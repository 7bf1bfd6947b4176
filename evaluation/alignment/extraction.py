"""Extract features of an image set under conditions: one file per model output and condition.

    <folder>/<prefix>_<condition>.pt             a model with one output
    <folder>/<prefix>_<output>_<condition>.pt    a model with several

What is computed for an image depends on neither the batch size (up to rounding) nor the number of ranks: batches are
filled up to one size, and random draws are keyed by names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common import distributed
from common.errors import DataError, UserError
from common.value_range import uint8_to_unit
from evaluation.alignment.conditions import Condition
from evaluation.alignment.config import ModelSection
from evaluation.alignment.features import SUFFIXES, FeatureSet, read_features, write_features
from evaluation.alignment.images import AnalysisImages, ConditionedImage, read_square
from evaluation.alignment.models.base import FeatureModel
from evaluation.alignment.transforms import ImageTransform, apply_transform
from evaluation.batches import fill_up, in_batches, read_ahead
from evaluation.images import to_tensor

log = logging.getLogger(__name__)


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


@torch.inference_mode()
def extract_condition(
    model: FeatureModel, images: Sequence[ConditionedImage], how: ExtractionOptions, title: str = ""
) -> dict[str, FeatureSet]:
    """Features of images under one condition, sorted by name; every rank must call it, and gets all.

    Args:
        images: all of them; ranks share them.
        title: heads the progress bar.

    Raises: DataError if an image is not readable.
    """
    ordered = sorted(images, key=lambda image: (image.transform.scale, image.file.key))
    share = ordered[distributed.rank() :: distributed.world_size()]
    found: dict[str, dict[str, Tensor]] = {output: {} for output in model.outputs}
    bar = tqdm(total=len(share), desc=title, unit="image", disable=distributed.rank() != 0 or not title)
    problem: UserError | None = None
    with bar:
        try:
            for names, pixels in _batches(share, how):
                features = model.features(pixels.to(how.device), names)
                for output, values in features.items():
                    found[output].update(zip(names, values.float().cpu()))  # copies at the end repeat the last name
                bar.update(len(set(names)))
        except UserError as error:
            problem = error
    distributed.raise_together(problem)
    records = {image.file.key: image.record for image in images}
    return {output: _gathered(values, records) for output, values in found.items()}


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


def _gathered(share: Mapping[str, Tensor], records: Mapping[str, dict[str, Any]]) -> FeatureSet:
    names = list(share)
    own = (names, torch.stack([share[name] for name in names]) if names else torch.empty(0))
    parts = distributed.all_gather_objects(own)
    rows = {name: row for names, values in parts for name, row in zip(names, values)}
    ordered = tuple(sorted(rows))
    return FeatureSet(torch.stack([rows[name] for name in ordered]), ordered, tuple(records[name] for name in ordered))


def extract_to_folder(
    model: FeatureModel,
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
        facts = distributed.on_rank_0(lambda condition=condition: _identity(model, section, images, condition, how))
        paths = {
            output: feature_path(folder, prefix, model.outputs, output, condition.name, suffix)
            for output in model.outputs
        }
        if distributed.on_rank_0(lambda paths=paths, facts=facts: _all_current(paths, facts)):
            log.info("%s %s: kept", prefix, condition.name)
            continue
        found = extract_condition(model, conditioned, how, title=f"{prefix} {condition.name}")
        distributed.on_rank_0(lambda found=found, facts=facts, paths=paths: _write(found, facts, paths))
        extracted += 1
    return extracted


def _identity(
    model: FeatureModel, section: ModelSection, images: AnalysisImages, condition: Condition, how: ExtractionOptions
) -> dict[str, Any]:
    """What decides the features of all outputs, in the form in which files carry it."""
    return {
        "model": {"kind": section.kind, **section.model_dump(mode="json")},
        "weights_sha256": model.weights_sha256,
        "images_sha256": images.sha256(condition),
        "num_images": len(images.clean),
        "condition": condition.name,
        "resolution": how.resolution,
        "protocol": "uniform",
        "sorted": True,
    }


def _all_current(paths: Mapping[str, Path], facts: Mapping[str, Any]) -> bool:
    return all(_is_current(path, {**facts, "feature_name": output}) for output, path in paths.items())


def _is_current(path: Path, facts: Mapping[str, Any]) -> bool:
    if not path.is_file():
        return False
    try:
        return read_features(path).facts == facts
    except UserError as error:
        log.warning("%s; it is written again.", error)
        return False


def _write(found: Mapping[str, FeatureSet], facts: Mapping[str, Any], paths: Mapping[str, Path]) -> None:
    for output, values in found.items():
        carrying = FeatureSet(values.features, values.names, values.transformations, {**facts, "feature_name": output})
        write_features(paths[output], carrying)


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
        raise DataError(f"{prefix}_clean.pt: does not exist, nor do files of other conditions; see extract.py.")
    return found
