"""Integration of a diffusion model from noise to data.

A field gives the velocity dx/dt of a state [B, ...]. Times run from 1 (noise) down to 0 (data); every integrator yields
the state at each of the times that it is given, the first one included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from common.errors import UserError
from losses.paths import Path


class Field(Protocol):
    """The velocity of a state."""

    def __call__(self, state: Tensor, t: float, step_start: float) -> Tensor:
        """dx/dt at time t; the integrator's step began at `step_start`, which the choice of guidance may go by."""
        ...


def euler(field: Field, state: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """x + dt v(x, t): one evaluation per step."""
    yield state
    for t, following in pairwise(times):
        state = state + (following - t) * field(state, t, t)
        yield state


def heun(field: Field, state: Tensor, times: Sequence[float], euler_steps_at_end: int = 0) -> Iterator[Tensor]:
    """The trapezoidal rule on an Euler step: two evaluations per step, second order.

    Args:
        euler_steps_at_end: so many of the last steps are Euler's.
    """
    steps = list(pairwise(times))
    corrected = len(steps) - euler_steps_at_end
    yield state
    for number, (t, following) in enumerate(steps):
        delta = following - t
        velocity = field(state, t, t)
        if number < corrected:
            ahead = field(state + delta * velocity, following, t)
            velocity = 0.5 * (velocity + ahead)
        state = state + delta * velocity
        yield state


def euler_maruyama(
    field: Field, state: Tensor, times: Sequence[float], path: Path, noise: Callable[[], Tensor]
) -> Iterator[Tensor]:
    """The reverse stochastic equation dx = (v - w score / 2) dt + sqrt(w) dW with w = 2 t, as REG samples.

    The last step has no noise. The first time may be 1; the last one is never evaluated.

    Args:
        path: which turns the velocity into the score.
        noise: standard normal draws of the shape of the state, called once for each step but the last.
    """
    steps = list(pairwise(times))
    yield state
    for number, (t, following) in enumerate(steps):
        delta, variance = following - t, 2 * t
        velocity = field(state, t, t)
        score = path.score_from_velocity(velocity, state, state.new_full((len(state),), t))
        state = state + delta * (velocity - 0.5 * variance * score)
        if number < len(steps) - 1:
            state = state + math.sqrt(variance * abs(delta)) * noise()
        yield state


# Dormand-Prince 5(4): stages, weights of the error estimate, and of the midpoint (Hairer et al., Solving ODEs I, II.5).
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# Two thirds of the difference between the fifth and the fourth order, the scale by which the reference's step control
# was tuned.
_ERROR = tuple(
    2 / 3 * weight for weight in (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
)
_MIDPOINT = (
    6025192743 / 30085553152,
    0.0,
    51252292925 / 65400821598,
    -2691868925 / 45128329728,
    187940372067 / 1594534317056,
    -1776094331 / 19743644256,
    11237099 / 235043384,
)
_SAFETY, _LARGEST_GROWTH, _SMALLEST_GROWTH, _ORDER = 0.9, 10.0, 0.2, 5


def dopri5(
    field: Field, state: Tensor, times: Sequence[float], rtol: float = 1e-3, atol: float = 1e-6
) -> Iterator[Tensor]:
    """Dormand and Prince's method with adaptive steps, one step size for the whole batch.

    Steps are not shortened to meet the times: states there are interpolated, and the last step may evaluate the field
    beyond the last time. As the batch shares its steps, a sample depends on its batch within the tolerances.

    Args:
        rtol, atol: the error of a step is kept below atol + rtol |x|, in the root mean square over all elements.
    Raises: UserError if no step is small enough.
    """
    direction = math.copysign(1.0, times[-1] - times[0])
    t, slope = times[0], field(state, times[0], times[0])
    step = direction * _first_step(field, state, slope, t, direction, rtol, atol)
    yield state
    wanted = list(times[1:])
    while wanted:
        stages = _stages(field, state, slope, t, step)
        proposal = state + step * _weighted(_STAGES[-1], stages)
        tolerance = atol + rtol * torch.maximum(state.abs(), proposal.abs())
        ratio = _rms(step * _weighted(_ERROR, stages) / tolerance)
        if not math.isfinite(ratio) or t + step == t:
            raise UserError(
                f"dopri5: at t = {t:g} even a step of {abs(step):.3g} has {ratio:.3g} times the allowed error; the "
                "network's velocity is not finite or too rough. Check the weights, or use another method."
            )
        if ratio <= 1:
            end = t + step
            while wanted and direction * wanted[0] <= direction * end:
                midpoint = state + 0.5 * step * _weighted(_MIDPOINT, stages)
                share = (wanted.pop(0) - t) / step
                yield _quartic(share, step, state, midpoint, proposal, slope, stages[-1])
            t, state, slope = end, proposal, stages[-1]
        step *= _growth(ratio)


def _stages(field: Field, state: Tensor, slope: Tensor, t: float, step: float) -> list[Tensor]:
    """The seven slopes of a step; the last one is that at its end."""
    stages = [slope]
    for node, weights in zip(_NODES, _STAGES):
        stages.append(field(state + step * _weighted(weights, stages), t + node * step, t))
    return stages


def _weighted(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    return sum(weight * tensor for weight, tensor in zip(weights, tensors) if weight)


def _rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def _growth(ratio: float) -> float:
    """Factor of the next step's size after a step with this ratio of error to tolerance."""
    if ratio == 0:
        return _LARGEST_GROWTH
    return min(_LARGEST_GROWTH, max(_SAFETY * ratio ** (-1 / _ORDER), 1.0 if ratio < 1 else _SMALLEST_GROWTH))


def _first_step(
    field: Field, state: Tensor, slope: Tensor, t: float, direction: float, rtol: float, atol: float
) -> float:
    """Size of the first step, from the size of state, slope and curvature (Hairer et al., II.4)."""
    scale = atol + rtol * state.abs()
    size, steepness = _rms(state / scale), _rms(slope / scale)
    trial = 1e-6 if min(size, steepness) < 1e-5 else 0.01 * size / steepness
    ahead = field(state + direction * trial * slope, t + direction * trial, t)
    curvature = _rms((ahead - slope) / scale) / trial
    if max(steepness, curvature) <= 1e-15:
        return max(1e-6, trial * 1e-3)
    return min(100 * trial, (0.01 / max(steepness, curvature)) ** (1 / _ORDER))


def _quartic(
    share: float, step: float, start: Tensor, midpoint: Tensor, end: Tensor, first_slope: Tensor, last_slope: Tensor
) -> Tensor:
    """The quartic through the ends and the middle of a step with the slopes at its ends, at a share of the step."""
    a, b = step * first_slope, step * last_slope
    fourth = 2 * (b - a) - 8 * (end + start) + 16 * midpoint
    third = 5 * a - 3 * b + 18 * start + 14 * end - 32 * midpoint
    second = b - 4 * a - 11 * start - 5 * end + 16 * midpoint
    return start + share * (a + share * (second + share * (third + share * fourth)))
