"""Generation metrics by the protocol of ADM's evaluator: FID, sFID, Inception Score, precision and recall.

images -> extractor, on all ranks -> features in order of the images -> statistics and scores -> report

With another extractor than Inception the same formulas give numbers with names of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from common import distributed
from common.errors import DataError, UserError
from common.files import sha256_of
from evaluation.batches import fill_up, in_batches
from evaluation.extractors.base import Extractor, ImageFeatures, MetricNames
from evaluation.frechet import FeatureMoments, FeatureStatistics, frechet_distance
from evaluation.image_batches import ImageBatch, open_image_batch
from evaluation.inception_score import SPLIT_SIZE, InceptionScore
from evaluation.kernel_distance import SEED, SUBSET_SIZE, SUBSETS, kernel_distance
from evaluation.npz import array_names
from evaluation.output_folder import tool_versions
from evaluation.precision_recall import NEIGHBOURS, precision_recall
from evaluation.reference_batch import ReferenceStatistics, read_statistics, write_reference_batch

CUSTOMARY_SAMPLES = 50_000


@dataclass(frozen=True)
class Computing:
    """How features are computed; none of it changes a number beyond rounding.

    Args:
        batch_size: images per batch on each rank; the last one is filled up.
        workers: threads that read images of folders.
        show_progress: draw progress bars.
    """

    device: torch.device
    batch_size: int = 64
    workers: int = 4
    show_progress: bool = False


@dataclass(frozen=True)
class MetricOptions:
    """What the protocol leaves open.

    Args:
        pr_half: distances for precision and recall in half precision, as ADM's evaluator computes them.
        with_kid: also compute the kernel distance.
    """

    pr_half: bool = False
    with_kid: bool = False


@dataclass(frozen=True)
class OpenedSet:
    """A set of images before any of its features are computed.

    Args:
        path: where it came from.
        images: None if there are only statistics.
        stored: statistics of the extractor's features, if the file holds them.
        notes: what was decided about this set that a reader should know.
    """

    path: Path
    images: ImageBatch | None
    stored: ReferenceStatistics | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Described:
    """A set of images in terms of features.

    Args:
        path: where it came from.
        images: number of images; 0 if there were only statistics.
        size: their (height, width), if there are any.
        statistics: "stored" in the file, or "computed" from the images.
        pool, spatial: Gaussians fitted to the features.
        features: pooled features of the images, [N, D], where they were kept.
        score: the images' Inception Score, where it was asked for and there are logits.
        notes: what was decided about this set that a reader should know.
    """

    path: Path
    images: int
    size: tuple[int, int] | None
    statistics: Literal["stored", "computed"]
    pool: FeatureMoments
    spatial: FeatureMoments | None
    features: Tensor | None
    score: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerationResult:
    """Metrics by name; why others are missing; what a reader should know."""

    values: dict[str, float]
    left_out: dict[str, str]
    warnings: tuple[str, ...]


# --- features --------------------------------------------------------------------------------------------------------


def extract_features(
    images: ImageBatch, extractor: Extractor, computing: Computing, title: str = ""
) -> Iterator[ImageFeatures]:
    """Features of all images in their order, on every rank, which must all go through them.

    Ranks take turns with batches, every batch is filled up to the full size and comes out as it would from one process,
    so that the number of ranks changes nothing.

    Raises: DataError on all ranks if any of them cannot read an image.
    """
    size, ranks, rank = computing.batch_size, distributed.world_size(), distributed.rank()
    own = [index for index in range(images.count) if index // size % ranks == rank]
    batches = in_batches(images.read(own, computing.workers), size)
    blank = torch.zeros(3, *images.size, dtype=torch.uint8)
    done = 0
    with tqdm(total=images.count, unit="image", desc=title, disable=not computing.show_progress) as progress:
        while done < images.count:
            batch = _next_batch(batches) or [blank]
            found = extractor(torch.stack(fill_up(batch, size)).to(computing.device))
            for features in _gather(found):
                count = min(size, images.count - done)
                if count:  # ranks without a batch of their own in the last round have nothing to give
                    yield ImageFeatures(*(part if part is None else part[:count] for part in features))
                done += count
                progress.update(count)


def _next_batch(batches: Iterator[list[Tensor]]) -> list[Tensor] | None:
    batch, error = None, None
    try:
        batch = next(batches, None)
    except UserError as met:
        error = met
    distributed.raise_together(error)
    return batch


def _gather(features: ImageFeatures) -> Iterator[tuple[Tensor | None, ...]]:
    """Pooled features, spatial features and logits of the batches of all ranks, rank by rank."""
    parts = (features.pool, features.spatial, features.logits)
    gathered = [None if part is None else distributed.all_gather(part.contiguous()) for part in parts]
    for rank in range(distributed.world_size()):
        yield tuple(part if part is None else part[rank] for part in gathered)


class _Accumulated:
    """What is kept of features as they come.

    Args:
        fit: fit Gaussians to them.
        keep: keep the pooled ones.
        score: compute the Inception Score of the logits.
    """

    def __init__(self, *, fit: bool, keep: bool, score: bool):
        self._fit, self._keep = fit, keep
        self._statistics: dict[str, FeatureStatistics] = {}
        self._kept: list[Tensor] = []
        self._score = InceptionScore(SPLIT_SIZE) if score else None

    def update(self, features: ImageFeatures) -> None:
        if self._fit:
            self._update_statistics("pool", features.pool)
            self._update_statistics("spatial", features.spatial)
        if self._keep:
            self._kept.append(features.pool)
        if self._score is not None and features.logits is not None:
            self._score.update(features.logits)

    def _update_statistics(self, kind: str, features: Tensor | None) -> None:
        if features is not None:
            if kind not in self._statistics:
                self._statistics[kind] = FeatureStatistics(features.shape[1], features.device)
            self._statistics[kind].update(features)

    def moments(self, kind: str) -> FeatureMoments | None:
        return self._statistics[kind].moments() if kind in self._statistics else None

    @property
    def features(self) -> Tensor | None:
        return torch.cat(self._kept) if self._kept else None

    @property
    def score(self) -> float | None:
        return self._score.value() if self._score is not None and self._score.count else None


def open_set(path: str | Path, extractor_name: str) -> OpenedSet:
    """Open an .npz file (ADM's form), a folder of images, or shards. Every rank must call it.

    Raises: DataError if it cannot be read, or has neither statistics of this extractor nor two images.
    """
    path = Path(path)
    images = open_image_batch(path)
    stored = read_statistics(path) if path.suffix.lower() == ".npz" else None
    notes: tuple[str, ...] = ()
    if stored is not None and stored.extractor != extractor_name:
        notes = (f"{path}: its statistics are of {stored.extractor}; new ones were computed from its images",)
        stored = None
    if stored is None and (images is None or images.count < 2):
        found = f"{images.count} images" if images is not None else f"the arrays {', '.join(array_names(path))}"
        raise DataError(
            f"{path}: found {found} and no statistics of the extractor {extractor_name}; expected at least 2 "
            "images (arr_0 of an .npz file), or the statistics (mu, sigma)."
        )
    return OpenedSet(path, images, stored, notes)


def describe(
    opened: OpenedSet, extractor: Extractor, computing: Computing, *, keep_features: bool, with_score: bool
) -> Described | None:
    """Statistics of a set of images, stored or computed, and what else metrics need; None on ranks other than 0.

    Every rank must call it.

    Args:
        keep_features: keep the pooled features, which precision and recall need.
        with_score: also compute the score of the logits.
    """
    images, stored = opened.images, opened.stored
    seen = _Accumulated(fit=stored is None, keep=keep_features, score=with_score)
    if images is not None and (stored is None or keep_features or with_score):
        for features in extract_features(images, extractor, computing, opened.path.name):
            if distributed.rank() == 0:
                seen.update(features)
    if distributed.rank() != 0:
        return None
    return Described(
        path=opened.path,
        images=0 if images is None else images.count,
        size=None if images is None else images.size,
        statistics="computed" if stored is None else "stored",
        pool=seen.moments("pool") if stored is None else stored.pool,
        spatial=seen.moments("spatial") if stored is None else stored.spatial,
        features=seen.features,
        score=seen.score,
        notes=opened.notes,
    )


# --- metrics ---------------------------------------------------------------------------------------------------------


def compare(reference: Described, samples: Described, names: MetricNames, options: MetricOptions) -> GenerationResult:
    """All metrics of generated images against a reference, in the order in which ADM's evaluator prints them."""
    values: dict[str, float] = {}
    left_out: dict[str, str] = {}
    if samples.score is not None:
        values[names.score] = samples.score
    else:
        left_out[names.score] = f"{samples.path} holds no images"
    values[names.frechet] = frechet_distance(reference.pool, samples.pool)
    missing = [s.path for s in (reference, samples) if s.spatial is None]
    if missing:
        left_out[names.spatial_frechet] = f"{missing[0]} holds no spatial statistics (mu_s, sigma_s)"
    else:
        values[names.spatial_frechet] = frechet_distance(reference.spatial, samples.spatial)
    few = [s for s in (reference, samples) if s.features is None or s.images <= NEIGHBOURS]
    if few:
        reason = f"{few[0].path} holds {few[0].images} images, expected at least {NEIGHBOURS + 1}"
        left_out |= dict.fromkeys((names.precision, names.recall), reason)
    else:
        found = precision_recall(reference.features, samples.features, NEIGHBOURS, options.pr_half)
        values |= {names.precision: found.precision, names.recall: found.recall}
    if options.with_kid:
        fewest = min(reference.images, samples.images)
        if fewest < SUBSET_SIZE:
            left_out[names.kernel] = f"the smaller set holds {fewest} images, expected at least {SUBSET_SIZE}"
        else:
            values[names.kernel] = kernel_distance(samples.features, reference.features).mean
    return GenerationResult(values, left_out, tuple(_warnings(reference, samples)))


def _warnings(reference: Described, samples: Described) -> Iterator[str]:
    yield from (*reference.notes, *samples.notes)
    for part in (reference, samples):
        dimension = len(part.pool.mean)
        if part.statistics == "computed" and part.images <= dimension:
            yield (
                f"{part.path}: {part.images} images for {dimension} features; the Frechet distance is biased upwards, "
                "so compare it only with ones of equally many images"
            )
    if samples.images != CUSTOMARY_SAMPLES:
        yield f"{samples.path}: {samples.images} images; published numbers are of {CUSTOMARY_SAMPLES}"
    if None not in (reference.size, samples.size) and reference.size != samples.size:
        sizes = [f"{width} x {height}" for height, width in (reference.size, samples.size)]
        yield f"{reference.path} holds images of {sizes[0]} pixels, {samples.path} of {sizes[1]}"


def evaluate_generation(
    reference_path: str | Path,
    sample_path: str | Path,
    extractor: Extractor,
    computing: Computing,
    options: MetricOptions,
) -> dict[str, Any] | None:
    """Metrics of generated images with their protocol, for a JSON file; None on ranks other than 0.

    Every rank must call it.
    """
    opened = [open_set(path, extractor.name) for path in (reference_path, sample_path)]
    reference = describe(opened[0], extractor, computing, keep_features=True, with_score=False)
    samples = describe(opened[1], extractor, computing, keep_features=True, with_score=True)
    if reference is None or samples is None:
        return None
    result = compare(reference, samples, extractor.metric_names, options)
    return {
        "metrics": result.values,
        "left_out": result.left_out,
        "warnings": list(result.warnings),
        "reference": _record(reference),
        "samples": _record(samples),
        "protocol": {
            "extractor": extractor.name,
            "weights_sha256": extractor.weights_sha256,
            "weights_origin": extractor.weights_origin,
            "score_split_size": SPLIT_SIZE,
            "neighbours": NEIGHBOURS,
            "precision_recall_distances": "float16" if options.pr_half else "float32",
            "kernel_distance": {"subsets": SUBSETS, "subset_size": SUBSET_SIZE, "seed": SEED},
            "batch_size_per_rank": computing.batch_size,
            "ranks": distributed.world_size(),
            "device": computing.device.type,
        },
        "versions": {**tool_versions(), "torch-fidelity": version("torch-fidelity")},
    }


def _record(described: Described) -> dict[str, Any]:
    path = described.path
    return {
        "path": str(path),
        "sha256": sha256_of(path) if path.is_file() else None,
        "images": described.images,
        "height_width": described.size,
        "statistics": described.statistics,
    }


def make_reference_batch(
    source: str | Path, target: str | Path, extractor: Extractor, computing: Computing, images_kept: int
) -> None:
    """Write a set of images as a reference batch for later comparisons. Every rank must call it.

    Raises: DataError if there are no images.
    """
    opened = open_set(source, extractor.name)
    if opened.images is None:
        raise DataError(f"{source}: found no images (arr_0), which a reference batch needs.")
    described = describe(opened, extractor, computing, keep_features=False, with_score=False)
    if described is not None:
        statistics = ReferenceStatistics(extractor.name, described.pool, described.spatial)
        write_reference_batch(target, opened.images, statistics, images_kept)
    distributed.barrier()
