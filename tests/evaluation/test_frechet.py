import numpy as np
import pytest
import torch

from common.errors import DataError, ShapeError
from evaluation.frechet import FeatureMoments, FeatureStatistics, frechet_distance


def features(count, dimension=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator)
    return torch.randn(count, dimension, generator=generator) @ mixing + 100


def statistics_of(*batches):
    statistics = FeatureStatistics(batches[0].shape[1])
    for batch in batches:
        statistics.update(batch)
    return statistics


def test_moments_equal_numpy_however_the_features_are_split():
    x = features(101)
    left, right = statistics_of(x[:7], x[7:40]), statistics_of(x[40:41], x[41:])
    left.merge(right)
    left.merge(FeatureStatistics(12))
    moments = left.moments()
    assert left.count == 101
    assert np.abs(moments.mean.numpy() - x.double().numpy().mean(0)).max() < 1e-10
    assert np.abs(moments.covariance.numpy() - np.cov(x.double().numpy(), rowvar=False)).max() < 1e-9


def test_distance_of_gaussians_with_diagonal_covariances_is_the_closed_form():
    a = FeatureMoments(torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4, 9])).double())
    b = FeatureMoments(torch.tensor([1.0, 0, 2]).double(), torch.diag(torch.tensor([4.0, 4, 0])).double())
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 0 + 9, abs=1e-12)


def test_distance_is_symmetric_and_zero_only_between_equals():
    a, b = (statistics_of(features(50, seed=seed)).moments() for seed in (0, 1))
    assert abs(frechet_distance(a, a)) < 1e-9
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 1


def test_distance_equals_the_root_of_scipy():
    from scipy.linalg import sqrtm

    a, b = (statistics_of(features(200, seed=seed)).moments() for seed in (2, 3))
    root = sqrtm((a.covariance @ b.covariance).numpy()).real.trace()
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-8)


def test_what_has_no_distance_is_refused():
    with pytest.raises(DataError, match="at least 2 images, found 1"):
        statistics_of(features(1)).moments()
    a = statistics_of(features(30)).moments()
    with pytest.raises(ShapeError, match="12 and 5 dimensions"):
        frechet_distance(a, statistics_of(features(30, 5)).moments())
    with pytest.raises(DataError, match="not finite"):
        frechet_distance(a, FeatureMoments(a.mean, a.covariance / 0))
