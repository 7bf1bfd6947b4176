"""Integrators, on Gaussian data: there the velocity is known, and where it leads."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from evaluation.diffusion.integrators import dopri5, euler, euler_maruyama, heun
from evaluation.diffusion.samplers import last, ode_times, sde_times
from losses.paths import PATHS

MEAN, SPREAD = 0.7, 0.4


def gaussian_velocity(x: Tensor, t: float) -> Tensor:
    """dx/dt on the linear path from N(MEAN, SPREAD^2) to N(0, 1)."""
    slope = (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2)
    return -MEAN + slope * (x - (1 - t) * MEAN)


def gaussian_field(x: Tensor, t: float, step_start: float) -> Tensor:
    return gaussian_velocity(x, t)


def exact(noise: Tensor, t: float) -> Tensor:
    """Where the flow takes noise until time t."""
    return (1 - t) * MEAN + math.sqrt((1 - t) ** 2 * SPREAD**2 + t**2) * noise


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def error(integrate: Callable, noise: Tensor, steps: int) -> float:
    states = list(integrate(gaussian_field, noise, ode_times(steps)))
    assert len(states) == steps + 1 and torch.equal(states[0], noise)
    return (states[-1] - exact(noise, 0)).abs().max().item()


@pytest.mark.parametrize(("integrate", "order"), [(euler, 1), (heun, 2)])
def test_twice_the_steps_divide_the_error_by_two_to_the_order(integrate, order, noise):
    factor = error(integrate, noise, 100) / error(integrate, noise, 200)
    assert math.log2(factor) == pytest.approx(order, abs=0.1)


def test_dopri5_meets_its_tolerance_at_every_time_with_few_evaluations(noise):
    times, evaluated = ode_times(7), []

    def field(x: Tensor, t: float, step_start: float) -> Tensor:
        evaluated.append(t)
        return gaussian_velocity(x, t)

    for rtol, limit, most in ((1e-3, 1e-2, 60), (1e-9, 1e-8, 700)):
        evaluated.clear()
        states = list(dopri5(field, noise, times, rtol=rtol, atol=rtol))
        errors = [(state - exact(noise, t)).abs().max().item() for t, state in zip(times, states, strict=True)]
        assert max(errors) < limit and len(evaluated) < most


def test_dopri5_integrates_towards_the_noise_as_well(noise):
    end = last(dopri5(gaussian_field, exact(noise, 0), [0.0, 1.0], rtol=1e-8, atol=1e-8))
    torch.testing.assert_close(end, noise, atol=1e-6, rtol=0)


def test_dopri5_stands_still_where_there_is_no_velocity(noise):
    states = list(dopri5(lambda x, t, step_start: torch.zeros_like(x), noise, [1.0, 0.5, 0.0]))
    torch.testing.assert_close(torch.stack(states), noise.expand(3, 4, 3))


def test_dopri5_says_where_no_step_works(noise):
    with pytest.raises(UserError, match=r"dopri5: at t = 1 even a step of .* Check the weights"):
        list(dopri5(lambda x, t, step_start: x * float("nan"), noise, [1.0, 0.0]))


def test_heun_ends_with_steps_of_euler_and_tells_the_field_where_its_step_began(noise):
    seen = []

    def field(x: Tensor, t: float, step_start: float) -> Tensor:
        seen.append((t, step_start))
        return gaussian_velocity(x, t)

    last(heun(field, noise, [1.0, 0.5, 0.25, 0.0], euler_steps_at_end=1))
    assert seen == [(1.0, 1.0), (0.5, 1.0), (0.5, 0.5), (0.25, 0.5), (0.25, 0.25)]


def test_stochastic_steps_end_in_the_distribution_of_the_data():
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(20_000, 1, generator=generator, dtype=torch.float64)

    states = list(euler_maruyama(gaussian_field, draw(), sde_times(200), PATHS["Linear"], draw))
    assert len(states) == 201
    assert states[-1].mean() == pytest.approx(MEAN, abs=0.01)
    assert states[-1].std() == pytest.approx(SPREAD, abs=0.01)


def test_last_stochastic_step_draws_nothing(noise):
    calls = []

    def draw() -> Tensor:
        calls.append(1)
        return torch.zeros_like(noise)

    last(euler_maruyama(gaussian_field, noise, sde_times(5), PATHS["Linear"], draw))
    assert len(calls) == 4
