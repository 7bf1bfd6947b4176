"""Paths, flow matching and the times that it draws."""

from __future__ import annotations

import math

import pytest
import torch

from common.config import violations
from common.errors import ShapeError
from losses.config import TRANSPORT_RELATIONS, TimeInterval, TransportConfig
from losses.flow_matching import flow_matching_loss
from losses.paths import PATHS
from losses.times import draw_transport_times, lognormal_ratio_times

TIMES = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64)
MEAN, SPREAD = 0.7, 0.4  # of Gaussian data, for which velocity and score are known


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=PATHS)
def path(request):
    return PATHS[request.param]


def gaussian_velocity(path, x, t):
    at = path.coefficients(t)
    variance = at.alpha**2 * SPREAD**2 + at.sigma**2
    slope = (at.alpha * at.alpha_slope * SPREAD**2 + at.sigma * at.sigma_slope) / variance
    return at.alpha_slope * MEAN + slope * (x - at.alpha * MEAN)


def gaussian_score(path, x, t):
    at = path.coefficients(t)
    return -(x - at.alpha * MEAN) / (at.alpha**2 * SPREAD**2 + at.sigma**2)


# --- paths -----------------------------------------------------------------------------------------------------------


def test_slopes_are_the_derivatives_and_growth_is_their_ratio(path):
    t = TIMES.clone().requires_grad_()
    at = path.coefficients(t)
    (alpha_slope,) = torch.autograd.grad(at.alpha.sum(), t, retain_graph=True)
    (sigma_slope,) = torch.autograd.grad(at.sigma.sum(), t, retain_graph=True)
    torch.testing.assert_close(at.alpha_slope, alpha_slope)
    torch.testing.assert_close(at.sigma_slope, sigma_slope)
    torch.testing.assert_close(path.growth(t), at.alpha_slope / at.alpha)
    torch.testing.assert_close(path.diffusion(t), at.sigma * at.sigma_slope - at.sigma**2 * path.growth(t))


@pytest.mark.parametrize(("name", "left_of_the_data"), [("Linear", 0.0), ("GVP", 0.0), ("VP", math.exp(-5.025))])
def test_a_path_leads_from_the_data_to_the_noise(name, left_of_the_data):
    data, noise = draws(2, 3), draws(2, 3, seed=1)
    start = PATHS[name].point(data, noise, torch.zeros(2, dtype=torch.float64))
    end = PATHS[name].point(data, noise, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(start.x, data)
    spread = math.sqrt(1 - left_of_the_data**2)
    torch.testing.assert_close(end.x, left_of_the_data * data + spread * noise)


def test_velocity_of_the_linear_path_is_noise_minus_data():
    data, noise = draws(4, 3), draws(4, 3, seed=1)
    torch.testing.assert_close(PATHS["Linear"].point(data, noise, TIMES).velocity, noise - data)


def test_score_noise_and_velocity_of_gaussian_data_agree(path):
    x = draws(4, 2, 3)
    t = TIMES[:, None, None]
    velocity, score = gaussian_velocity(path, x, t), gaussian_score(path, x, t)
    noise = -path.coefficients(t).sigma * score
    torch.testing.assert_close(path.score_from_velocity(velocity, x, TIMES), score)
    torch.testing.assert_close(path.velocity_from_score(score, x, TIMES), velocity)
    torch.testing.assert_close(path.velocity_from_noise(noise, x, TIMES), velocity)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
def test_what_the_network_should_give_has_no_loss(path, prediction):
    name = next(name for name, known in PATHS.items() if known is path)
    point = path.point(draws(4, 3, 2, 2), draws(4, 3, 2, 2, seed=1), TIMES)
    sigma = path.coefficients(TIMES[:, None, None, None]).sigma
    right = {"velocity": point.velocity, "noise": point.noise, "score": -point.noise / sigma}[prediction]
    transport = TransportConfig(path_type=name, prediction=prediction, use_cosine_loss=prediction == "velocity")
    assert flow_matching_loss(right, point, transport).total.abs() < 1e-6
    assert flow_matching_loss(right + 0.5, point, transport).total > 0.01


def test_cosine_term_sees_the_direction_alone_and_is_added_with_weight_one():
    point = PATHS["Linear"].point(draws(4, 3, 2, 2), draws(4, 3, 2, 2, seed=1), TIMES)
    transport = TransportConfig(use_cosine_loss=True)
    longer = flow_matching_loss(3 * point.velocity, point, transport)
    opposite = flow_matching_loss(-point.velocity, point, transport)
    torch.testing.assert_close(longer.cosine, torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(opposite.cosine, torch.full((4,), 2.0))
    mse = (2 * point.velocity).square().mean().float()
    torch.testing.assert_close(longer.total, mse)
    torch.testing.assert_close(opposite.total, mse + 2)
    assert flow_matching_loss(longer.mse[:, None, None, None] + point.velocity, point, TransportConfig()).cosine is None


def test_weights_of_the_noise_loss_follow_the_diffusion():
    point = PATHS["Linear"].point(draws(4, 3, 2, 2), draws(4, 3, 2, 2, seed=1), TIMES)
    output = point.noise + 1
    for weight, expected in (
        (None, TIMES**0),
        ("velocity", (1 - TIMES) ** -2),
        ("likelihood", 1 / TIMES / (1 - TIMES)),
    ):
        transport = TransportConfig(prediction="noise", loss_weight=weight)
        torch.testing.assert_close(flow_matching_loss(output, point, transport).mse, expected, check_dtype=False)


def test_output_of_another_shape_is_refused():
    point = PATHS["Linear"].point(draws(4, 3, 2, 2), draws(4, 3, 2, 2), TIMES)
    with pytest.raises(ShapeError, match=r"prediction \[4, 6, 2, 2\] and target \[4, 3, 2, 2\]"):
        flow_matching_loss(draws(4, 6, 2, 2), point, TransportConfig())


# --- times -----------------------------------------------------------------------------------------------------------


def test_logit_normal_times_have_the_moments_of_the_distribution():
    times = draw_transport_times(200_000, TransportConfig(use_lognorm=True), torch.Generator().manual_seed(0))
    assert times.dtype == torch.float32 and times.shape == (200_000,)
    assert times.mean() == pytest.approx(0.5, abs=0.002)
    assert (times < 0.5).float().mean() == pytest.approx(0.5, abs=0.004)
    assert times.std() == pytest.approx(0.208, abs=0.001)


def test_uniform_times_are_uniform_within_the_interval_of_training():
    transport = TransportConfig(prediction="noise", train_eps=0.1)
    times = draw_transport_times(200_000, transport, torch.Generator().manual_seed(0))
    assert times.min() >= 0.1 and times.max() <= 0.9
    assert times.mean() == pytest.approx(0.5, abs=0.002)
    assert times.std() == pytest.approx(0.8 / math.sqrt(12), abs=0.001)


@pytest.mark.parametrize(("path_type", "path_name"), [("linear", "Linear"), ("cosine", "GVP")])
def test_lognormal_times_have_a_lognormal_ratio_of_noise_to_data(path_type, path_name):
    normal = draws(1000)
    at = PATHS[path_name].coefficients(lognormal_ratio_times(normal, path_type))
    torch.testing.assert_close(torch.log(at.sigma / at.alpha), normal)


@pytest.mark.parametrize(
    ("options", "training", "sampling"),
    [
        ({}, (0, 1), (0, 1)),
        ({"path_type": "GVP"}, (0, 1), (0, 1)),
        ({"prediction": "noise"}, (1e-3, 1 - 1e-3), (1e-3, 1 - 1e-3)),
        ({"prediction": "score", "path_type": "GVP", "train_eps": 0.01}, (0.01, 0.99), (1e-3, 1 - 1e-3)),
        ({"path_type": "VP"}, (1e-5, 1), (1e-3, 1)),
        ({"path_type": "VP", "prediction": "score", "sample_eps": 0.02}, (1e-5, 1), (0.02, 1)),
    ],
)
def test_paths_are_left_out_where_they_are_singular(options, training, sampling):
    transport = TransportConfig(**options)
    assert transport.training_interval == TimeInterval(*training)
    assert transport.sampling_interval == TimeInterval(*sampling)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"train_eps": 0.1}, "train_eps: found 0.1, but the velocity of the path Linear needs no distance"),
        ({"loss_weight": "velocity"}, 'loss_weight: found "velocity", but only the loss of a noise or score'),
        ({"use_cosine_loss": True, "prediction": "noise"}, 'use_cosine_loss: found true, but prediction is "noise"'),
    ],
)
def test_keys_that_would_do_nothing_are_reported(options, problem):
    assert violations(TransportConfig(), TRANSPORT_RELATIONS) == []
    (found,) = violations(TransportConfig(**options), TRANSPORT_RELATIONS)
    assert str(found).startswith(problem)
