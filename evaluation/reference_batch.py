"""ADM's reference batches: some images, and the statistics of features of a whole data set, in one .npz file.

arr_0           uint8 [N, H, W, 3], the images; precision and recall look at these
mu, sigma       mean [D] and covariance [D, D] of the pooled features of the whole set
mu_s, sigma_s   the same of the spatial features
extractor       this project's addition: whose features they are; a file without it speaks of Inception's
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import DataError
from evaluation.batches import spread
from evaluation.frechet import FeatureMoments
from evaluation.image_batches import IMAGES_KEY, ImageBatch
from evaluation.npz import array_names, read_array, write_npz

EXTRACTOR_KEY = "extractor"
DEFAULT_EXTRACTOR = "inception"
IMAGES_KEPT = 10_000


@dataclass(frozen=True)
class ReferenceStatistics:
    """Statistics of the features of a whole data set.

    Args:
        extractor: the extractor's name.
        spatial: None if the file has none.
    """

    extractor: str
    pool: FeatureMoments
    spatial: FeatureMoments | None


@dataclass(frozen=True)
class StoredMoments:
    """A Gaussian in the form of the files: mean fp32 [D], covariance float64 [D, D]."""

    mean: np.ndarray
    covariance: np.ndarray


def stored_moments(moments: FeatureMoments) -> StoredMoments:
    """A Gaussian in the form of the files."""
    return StoredMoments(moments.mean.float().cpu().numpy(), moments.covariance.cpu().numpy())


def read_statistics(path: str | Path) -> ReferenceStatistics | None:
    """The statistics in an .npz file, or None if it has none. Raises DataError if they are not whole."""
    path = Path(path)
    names = array_names(path)
    if "mu" not in names:
        return None
    extractor = str(read_array(path, EXTRACTOR_KEY)) if EXTRACTOR_KEY in names else DEFAULT_EXTRACTOR
    spatial = _read_moments(path, names, "mu_s", "sigma_s") if "mu_s" in names else None
    return ReferenceStatistics(extractor, _read_moments(path, names, "mu", "sigma"), spatial)


def _read_moments(path: Path, names: list[str], mean_key: str, covariance_key: str) -> FeatureMoments:
    if covariance_key not in names:
        raise DataError(f"{path}: found {mean_key} without {covariance_key}, expected both.")
    mean, covariance = read_array(path, mean_key), read_array(path, covariance_key)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(
            f"{path}: {mean_key}, {covariance_key}: found {list(mean.shape)} and {list(covariance.shape)}, expected "
            "[D] and [D, D]."
        )
    return FeatureMoments(*(torch.from_numpy(array.astype(np.float64)) for array in (mean, covariance)))


def write_reference_batch(
    path: str | Path, images: ImageBatch, statistics: ReferenceStatistics, kept: int = IMAGES_KEPT
) -> None:
    """Write a reference batch with `kept` of the images, evenly spread over all (or all, if there are no more)."""
    indices = spread(images.count, kept)
    arrays = {EXTRACTOR_KEY: np.array(statistics.extractor)}
    for moments, keys in ((statistics.pool, ("mu", "sigma")), (statistics.spatial, ("mu_s", "sigma_s"))):
        if moments is not None:
            stored = stored_moments(moments)
            arrays |= {keys[0]: stored.mean, keys[1]: stored.covariance}
    rows = (image.permute(1, 2, 0).numpy() for image in images.read(indices))
    write_npz(path, IMAGES_KEY, (len(indices), *images.size, 3), rows, arrays)
