"""How near reconstructions are to their originals as a set: rFID, rIS and KID, or the same formulas on other features.

names in two folders -> features of an extractor, on all ranks -> Frechet distance | score | kernel distance

The numbers are those of torch-fidelity with its default settings. The score comes from its own function; the Frechet
distance and the kernel distance are the project's, which equal its own (tested) and stay exact for small sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import distributed
from evaluation.extractors.base import Extractor
from evaluation.frechet import FeatureMoments, FeatureStatistics, frechet_distance
from evaluation.generation import Computing, extract_features
from evaluation.image_batches import FileImages
from evaluation.images import ImageFile
from evaluation.kernel_distance import SEED, SUBSET_SIZE, SUBSETS, kernel_distance
from evaluation.quality import Pairs

SCORE_SPLITS = 10
SCORE_SEED = 2020  # of the shuffle before the splits


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


@dataclass(frozen=True)
class _Features:
    """pool [N, D], and logits [N, K] if there is a classifier."""

    pool: Tensor
    logits: Tensor | None


def score_sets(pairs: Pairs, extractor: Extractor, computing: Computing) -> SetScores:
    """Score the predictions of all pairs against their references; every rank must call it, and gets the result.

    Raises: DataError if an image cannot be read, if the images of a folder differ in size, or if there are fewer than
        two.
    """
    reference = _features_of(pairs.ref_dir, pairs, extractor, computing, with_logits=False)
    prediction = _features_of(pairs.pred_dir, pairs, extractor, computing, with_logits=True)
    return distributed.on_rank_0(lambda: _score(reference, prediction, extractor))


def _features_of(
    folder: Path, pairs: Pairs, extractor: Extractor, computing: Computing, with_logits: bool
) -> _Features | None:
    """Features of all images on rank 0; None on the others, which have only helped."""
    images = FileImages([ImageFile(folder / name, name) for name in pairs.names], pairs.resize)
    pool, logits = [], []
    for part in extract_features(images, extractor, computing, f"{extractor.name}: {folder.name}"):
        if distributed.rank() == 0:
            pool.append(part.pool.cpu())
            if with_logits and part.logits is not None:
                logits.append(part.logits.cpu())
    if distributed.rank() != 0:
        return None
    return _Features(torch.cat(pool), torch.cat(logits) if logits else None)


def moments_of(features: Tensor) -> FeatureMoments:
    """The Gaussian fitted to features [N, D]. Raises DataError if there are fewer than two rows."""
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics.moments()


def _score(reference: _Features, prediction: _Features, extractor: Extractor) -> SetScores:
    names, count, dimension = extractor.metric_names, *prediction.pool.shape
    splits, subset = min(SCORE_SPLITS, count), min(SUBSET_SIZE, count)
    distance = frechet_distance(moments_of(reference.pool), moments_of(prediction.pool))
    values = {_of_reconstructions(names.frechet): distance}
    if prediction.logits is not None:
        score = _of_reconstructions(names.score)
        values[f"{score}_mean"], values[f"{score}_std"] = _score_of(prediction.logits, splits)
    kernel = kernel_distance(prediction.pool, reference.pool, SUBSETS, subset, SEED)
    values[f"{names.kernel}_mean"] = kernel.mean
    if subset < count:  # else every subset is the whole set
        values[f"{names.kernel}_std"] = kernel.std
    protocol = {
        "extractor": extractor.name,
        "weights": extractor.weights_origin,
        "weights_sha256": extractor.weights_sha256,
        "images": count,
        "score": {"splits": splits, "shuffled_with_seed": SCORE_SEED},
        "kernel_distance": {"subsets": SUBSETS, "subset_size": subset, "seed": SEED},
        "torch_fidelity": version("torch-fidelity"),
    }
    caution = None
    if count <= dimension:
        caution = (
            f"{count} images do not determine a covariance of {dimension} features: the Frechet distance is biased "
            "upwards and compares only with that of equally many images; prefer the kernel distance."
        )
    return SetScores({name: round(value, 6) for name, value in values.items()}, protocol, caution)


def _of_reconstructions(name: str) -> str:
    """rFID and rIS, where the extractor's metrics are FID and Inception Score."""
    return {"fid": "rfid", "inception_score": "ris"}.get(name, name)


def _score_of(logits: Tensor, splits: int) -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))), mean and standard deviation over the splits."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    found = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=SCORE_SEED)
    return found["inception_score_mean"], found["inception_score_std"]
