"""Samplers of LightningDiT and REG."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from common.config import violations
from common.errors import UserError
from evaluation.diffusion.config import REG_SAMPLING_RELATIONS, LightningDiTSamplingConfig, REGSamplingConfig
from evaluation.diffusion.draws import StepNoise, sample_noise
from evaluation.diffusion.samplers import Entangled, LightningDiTSampler, last, shifted_times
from evaluation.sampling.labels import sample_labels
from losses.config import TimeInterval, TransportConfig
from losses.paths import PATHS
from networks.diffusion.guidance import combine
from tests.evaluation.diffusion.tiny_samplers import lightningdit_sampler, reg_sampler, seeded
from tests.networks.diffusion.tiny import lightningdit, reg_sit

COUNT = 8


SAMPLERS = {
    "euler": lambda: lightningdit_sampler(),
    "heun2": lambda: lightningdit_sampler(sampling_method="heun2"),
    "sde": lambda: reg_sampler(mode="sde"),
    "ode": lambda: reg_sampler(mode="ode", heun=True),
}


def labels_of(indices) -> Tensor:
    return sample_labels(indices, range(10), "random", seed=3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_depends_on_its_number_alone(name):
    sampler = SAMPLERS[name]()
    whole = sampler.sample(range(COUNT), labels_of(range(COUNT)), seed=3)
    assert whole.shape == (COUNT, 5, 4, 4) and whole.dtype == torch.float32
    for size in (1, 3):
        for first in range(0, COUNT, size):
            indices = range(first, min(first + size, COUNT))
            found = sampler.sample(indices, labels_of(indices), seed=3)
            torch.testing.assert_close(found, whole[indices.start : indices.stop], atol=1e-5, rtol=0)
    assert (sampler.sample([0], labels_of([0]), seed=4) - whole[:1]).abs().max() > 0.1


# --- LightningDiT ----------------------------------------------------------------------------------------------------


def test_guidance_is_the_same_whether_or_not_the_unused_half_is_computed():
    network = seeded(lightningdit)
    sampler = lightningdit_sampler(network)
    noise, y = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 9])
    both, state = torch.cat([y, torch.full_like(y, 10)]), noise
    with torch.no_grad():
        for t, following in pairwise(sampler.times):
            velocity = network.velocity(torch.cat([state, state]), torch.full((6,), t), both)
            conditional, unconditional = velocity.chunk(2)
            guided = combine(conditional, unconditional, 3.0, 3)
            state = state + (following - t) * (guided if 1 - t >= 0.3 else conditional)
        found = last(sampler.trajectory(noise, y))
    torch.testing.assert_close(found, state, atol=1e-5, rtol=0)


def test_scale_one_is_the_unguided_flow_and_needs_no_null_class():
    network = seeded(lightningdit, class_dropout_prob=0.0)
    sampler = lightningdit_sampler(network, cfg_scale=1.0)
    noise, y = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 9])
    state = noise
    with torch.no_grad():
        for t, following in pairwise(sampler.times):
            state = state + (following - t) * network.velocity(state, torch.full((3,), t), y)
        torch.testing.assert_close(last(sampler.trajectory(noise, y)), state, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="this network has no null class"):
        lightningdit_sampler(network, cfg_scale=1.5)


def test_all_channels_are_three_where_there_are_three():
    network = seeded(lightningdit, in_channels=3)
    three = lightningdit_sampler(network, cfg_channels=3).sample([0, 1], torch.tensor([2, 3]), seed=0)
    all_of_them = lightningdit_sampler(network, cfg_channels="all").sample([0, 1], torch.tensor([2, 3]), seed=0)
    assert torch.equal(three, all_of_them)
    wide = seeded(lightningdit)
    few, many = (lightningdit_sampler(wide, cfg_channels=n).sample([0], torch.tensor([2]), 0) for n in (3, "all"))
    assert (few - many).abs().max() > 1e-3


def test_published_settings_guide_168_of_249_steps():
    sampler = lightningdit_sampler(num_sampling_steps=250, cfg_interval_start=0.125)
    assert len(sampler.times) == 250 and sampler.times[0] == 1 and sampler.times[-1] == 0
    assert sum(sampler.guidance.acts_at(t) for t in sampler.times[:-1]) == 249 - 81


def test_a_grid_point_at_the_start_of_the_interval_is_guided():
    for count, start in ((11, 0.3), (11, 0.7), (6, 0.6)):
        sampler = lightningdit_sampler(num_sampling_steps=count, timestep_shift=0.0, cfg_interval_start=start)
        guided = [sampler.guidance.acts_at(t) for t in sampler.times]
        assert guided.index(True) == round(start * (count - 1)) and all(guided[guided.index(True) :])


def test_shift_moves_the_grid_towards_the_noise_and_keeps_its_ends():
    times = shifted_times(5, 0.3, TimeInterval(0.0, 1.0))
    plain = torch.linspace(1, 0, 5).tolist()
    assert times == pytest.approx([t / (0.3 + 0.7 * t) for t in plain], abs=1e-6)
    assert shifted_times(5, 0.0, TimeInterval(0.0, 1.0)) == shifted_times(5, 1.0, TimeInterval(0.0, 1.0)) == plain
    assert shifted_times(3, 0.0, TimeInterval(0.001, 1.0)) == pytest.approx([1, 0.5005, 0.001], abs=1e-7)


class GaussianNetwork(nn.Module):
    """Gives the noise or the score of data from N(0.7, 0.4^2), as a network does that was trained to."""

    def __init__(self, transport: TransportConfig):
        super().__init__()
        self.transport = transport
        self.config = SimpleNamespace(num_classes=10, in_channels=2, input_size=3)
        self.pos_embed = nn.Parameter(torch.zeros(()))

    def velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        at = PATHS[self.transport.path_type].coefficients(t[:, None, None, None])
        score = -(x - at.alpha * 0.7) / (at.alpha**2 * 0.4**2 + at.sigma**2)
        return -(score if self.transport.prediction == "score" else -at.sigma * score)


@pytest.mark.parametrize("path_type", ["Linear", "GVP", "VP"])
@pytest.mark.parametrize("prediction", ["noise", "score"])
@pytest.mark.parametrize("method", ["heun2", "dopri5"])
def test_networks_that_predict_noise_or_score_reach_the_data(path_type, prediction, method):
    transport = TransportConfig(path_type=path_type, prediction=prediction)
    config = LightningDiTSamplingConfig(
        sampling_method=method, num_sampling_steps=400, timestep_shift=0.0, cfg_scale=1.0, rtol=1e-5
    )
    sampler = LightningDiTSampler(GaussianNetwork(transport), transport, config)
    labels = torch.zeros(COUNT, dtype=torch.long)
    found = sampler.sample(range(COUNT), labels, seed=0)
    interval = transport.sampling_interval
    noise = sample_noise(range(COUNT), (2, 3, 3), 0, "sample_noise")
    ends = PATHS[path_type].coefficients(torch.tensor([interval.low, interval.high]))
    spread = (ends.alpha**2 * 0.4**2 + ends.sigma**2).sqrt()
    expected = ends.alpha[0] * 0.7 + spread[0] * (noise - ends.alpha[1] * 0.7) / spread[1]
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


# --- REG -------------------------------------------------------------------------------------------------------------


def reg_start() -> tuple[Entangled, Tensor]:
    generator = torch.Generator().manual_seed(0)
    start = Entangled(torch.randn(3, 5, 4, 4, generator=generator), torch.randn(3, 12, generator=generator))
    return start, torch.tensor([0, 4, 9])


def test_published_settings_guide_198_of_250_evaluations():
    sampler = reg_sampler(num_steps=250, guidance_high=0.8)
    assert len(sampler.times) == 251 and sampler.times[-2:] == [pytest.approx(0.04), 0.0]
    assert sum(sampler.guidance.acts_at(t) for t in sampler.times[:-1]) == 198


def test_reg_is_guided_as_if_both_halves_were_always_computed():
    network, (start, y) = seeded(reg_sit), reg_start()
    sampler = reg_sampler(network, mode="ode", cls_cfg_scale=1.5)
    x, k = start.latent.double(), start.class_token.double()
    with torch.no_grad():
        for t, following in pairwise(sampler.times):
            conditional, unconditional = (
                network.velocity(x.float(), torch.full((3,), t), labels, k.float())
                for labels in (y, torch.full_like(y, 10))
            )
            scales = (3.0, 1.5) if t <= 0.7 else (1.0, 1.0)
            x = x + (following - t) * combine(conditional.latent, unconditional.latent, scales[0]).double()
            k = k + (following - t) * combine(conditional.class_token, unconditional.class_token, scales[1]).double()
        found = last(sampler.trajectory(start, y))
    torch.testing.assert_close(found.latent, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.class_token, k, atol=1e-5, rtol=0)


def test_scale_one_samples_reg_without_guidance_whatever_the_class_token_has():
    network, (start, y) = seeded(reg_sit, class_dropout_prob=0.0), reg_start()
    with torch.no_grad():
        plain, other = (
            last(reg_sampler(network, mode="ode", cfg_scale=1.0, cls_cfg_scale=scale).trajectory(start, y))
            for scale in (None, 4.0)
        )
    assert torch.equal(plain.latent, other.latent) and torch.equal(plain.class_token, other.class_token)
    with pytest.raises(UserError, match="this network has no null class"):
        reg_sampler(network)


def test_class_token_without_a_scale_of_its_own_has_that_of_the_latent():
    network, (start, y) = seeded(reg_sit), reg_start()
    with torch.no_grad():
        shared, same, none = (
            last(reg_sampler(network, mode="ode", cls_cfg_scale=scale).trajectory(start, y)).class_token
            for scale in (None, 3.0, 0.0)
        )
    assert torch.equal(shared, same) and (shared - none).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"heun": True}, "heun: found true, which only mode: ode can use."),
        ({"guidance_low": 0.9}, "guidance_low: 0.9 is above guidance_high 0.8."),
    ],
)
def test_settings_that_contradict_one_another_are_reported(options, problem):
    assert violations(REGSamplingConfig(), REG_SAMPLING_RELATIONS) == []
    assert [str(found) for found in violations(REGSamplingConfig(**options), REG_SAMPLING_RELATIONS)] == [problem]


# --- draws -----------------------------------------------------------------------------------------------------------


def test_labels_are_balanced_or_random_over_the_wanted_classes():
    balanced = sample_labels(range(1001), range(10), "balanced", seed=0)
    assert torch.bincount(balanced).tolist() == [101] + [100] * 9
    random = sample_labels(range(10_000), range(10), "random", seed=0)
    counts = torch.bincount(random, minlength=10)
    assert counts.min() > 1000 - 5 * math.sqrt(900) and counts.max() < 1000 + 5 * math.sqrt(900)
    assert not torch.equal(random, sample_labels(range(10_000), range(10), "random", seed=1))
    assert set(sample_labels(range(50), (3, 7), "random", seed=0).tolist()) == {3, 7}


def test_step_noise_of_a_sample_goes_on_from_step_to_step():
    together = StepNoise([5, 6], 4, 0, torch.device("cpu"))
    alone = StepNoise([6], 4, 0, torch.device("cpu"))
    first, second = together(), together()
    assert first.dtype == torch.float64 and not torch.equal(first, second)
    assert torch.equal(alone(), first[1:]) and torch.equal(alone(), second[1:])
