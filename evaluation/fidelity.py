"""How near reconstructions are to their originals as a set: rFID, rIS and KID, or the same formulas on other features.

names in two folders -> features of an extractor, shared by the ranks -> Frechet distance | score | kernel distance

The score and the kernel distance are computed by torch-fidelity's own functions with its settings; the Frechet distance
is that of `evaluation.frechet`, which equals torch-fidelity's and stays exact with fewer images than features.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common import distributed
from common.errors import DataError
from evaluation.batches import fill_up, in_batches, read_ahead
from evaluation.extractors.base import Extractor, ImageFeatures
from evaluation.frechet import FeatureMoments, FeatureStatistics, frechet_distance
from evaluation.images import to_tensor
from evaluation.quality import Pairs, read_pixels

SCORE_SPLITS = 10
KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
SEED = 2020  # of torch-fidelity's shuffle and subsets


@dataclass(frozen=True)
class SetScores:
    """Scores of a set of reconstructions.

    Args:
        values: by name, for example `rfid`, `ris_mean`, `ris_std`, `kid_mean`, `kid_std`.
        protocol: extractor, weights, settings and counts that decide them.
        caution: what keeps the numbers from being compared with others, or None.
    """

    values: dict[str, float]
    protocol: dict[str, Any]
    caution: str | None


def _of_reconstructions(name: str) -> str:
    """rFID and rIS, where the extractor's metrics are FID and Inception Score."""
    return {"fid": "rfid", "inception_score": "ris"}.get(name, name)


def moments_of(features: Tensor) -> FeatureMoments:
    """The Gaussian fitted to features [N, D]. Raises DataError if there are fewer than two rows."""
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics.moments()


def score_sets(
    pairs: Pairs,
    extractor: Extractor,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    show_progress: bool = False,
) -> SetScores:
    """Score the predictions of all pairs against their references; every rank must call it, and gets the result.

    Raises: DataError if the images of a folder differ in size, or if there are fewer than two.
    """

    def features(folder: Path) -> ImageFeatures:
        return folder_features(
            folder,
            pairs.names,
            extractor,
            batch_size=batch_size,
            workers=workers,
            device=device,
            show_progress=show_progress,
        )

    reference, prediction = features(pairs.ref_dir), features(pairs.pred_dir)
    return distributed.on_rank_0(lambda: _score(reference, prediction, extractor))


def folder_features(
    folder: Path,
    names: Sequence[str],
    extractor: Extractor,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    show_progress: bool = False,
) -> ImageFeatures:
    """Features of images in the order of their names, on the CPU; without the spatial ones.

    The ranks share the images and get the features of all. Every batch has the full size, so that the features of an
    image depend on neither their number nor the ranks.

    Raises: DataError that names an image that cannot be read, or that has another size than the first.
    """
    share = names[distributed.rank() :: distributed.world_size()]
    first_size = read_pixels(folder / names[0]).shape
    parts: list[ImageFeatures] = []

    def read(name: str) -> Tensor:
        pixels = read_pixels(folder / name)
        if pixels.shape != first_size:
            raise DataError(
                f"{folder / name}: found {_size(pixels.shape)} pixels, expected {_size(first_size)} as {names[0]}; "
                "features of a set need images of one size."
            )
        return to_tensor(pixels)

    bar = tqdm(total=len(share), unit="image", desc=f"{extractor.name}: {folder.name}", disable=not show_progress)
    error = None
    with bar, ThreadPoolExecutor(max(workers, 1)) as pool:
        try:
            for batch in in_batches(read_ahead(pool, read, share, ahead=2 * batch_size + workers), batch_size):
                found = extractor(torch.stack(fill_up(batch, batch_size)).to(device))
                parts.append(_rows(found, slice(len(batch))))
                bar.update(len(batch))
        except DataError as met:
            error = met
    distributed.raise_together(error)
    gathered = distributed.all_gather_objects(_joined(parts) if parts else None)
    everything = _joined([part for part in gathered if part is not None])
    ranks = distributed.world_size()
    order = [number for rank in range(ranks) for number in range(rank, len(names), ranks)]
    return _rows(everything, torch.tensor(order).argsort())


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _rows(features: ImageFeatures, rows: slice | Tensor) -> ImageFeatures:
    logits = None if features.logits is None else features.logits[rows].cpu()
    return ImageFeatures(features.pool[rows].cpu(), None, logits)


def _joined(parts: Sequence[ImageFeatures]) -> ImageFeatures:
    has_logits = parts[0].logits is not None
    logits = torch.cat([part.logits for part in parts]) if has_logits else None
    return ImageFeatures(torch.cat([part.pool for part in parts]), None, logits)


def _score(reference: ImageFeatures, prediction: ImageFeatures, extractor: Extractor) -> SetScores:
    names, count, dimension = extractor.metric_names, *prediction.pool.shape
    splits, subset = min(SCORE_SPLITS, count), min(KERNEL_SUBSET_SIZE, count)
    distance = frechet_distance(moments_of(reference.pool), moments_of(prediction.pool))
    values = {_of_reconstructions(names.frechet): distance}
    if prediction.logits is not None:
        values |= _mean_and_std(_of_reconstructions(names.score), _score_of(prediction.logits, splits))
    kernel = _mean_and_std(names.kernel, _kernel_distance(prediction.pool, reference.pool, subset))
    if subset == count:  # every subset is the whole set
        del kernel[f"{names.kernel}_std"]
    values |= kernel
    protocol = {
        "extractor": extractor.name,
        "weights": extractor.weights_origin,
        "weights_sha256": extractor.weights_sha256,
        "images": count,
        "score": {"splits": splits, "shuffled_with_seed": SEED},
        "kernel_distance": {"subsets": KERNEL_SUBSETS, "subset_size": subset, "seed": SEED},
        "torch_fidelity": version("torch-fidelity"),
    }
    caution = None
    if count <= dimension:
        caution = (
            f"{count} images do not determine a covariance of {dimension} features: the Frechet distance is biased "
            "upwards and compares only with that of equally many images; prefer the kernel distance."
        )
    return SetScores({name: round(value, 6) for name, value in values.items()}, protocol, caution)


def _mean_and_std(name: str, values: dict[str, float]) -> dict[str, float]:
    """torch-fidelity's mean and standard deviation under the project's names."""
    return {f"{name}_{key.rpartition('_')[2]}": value for key, value in values.items()}


def _score_of(logits: Tensor, splits: int) -> dict[str, float]:
    """exp(E KL(p(y|x) || p(y))), mean and standard deviation over the splits."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    return isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=SEED)


def _kernel_distance(prediction: Tensor, reference: Tensor, subset_size: int) -> dict[str, float]:
    """Unbiased squared MMD with the cubic polynomial kernel, mean and standard deviation over random subsets."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    return kid_features_to_metric(
        prediction, reference, kid_subsets=KERNEL_SUBSETS, kid_subset_size=subset_size, rng_seed=SEED, verbose=False
    )
