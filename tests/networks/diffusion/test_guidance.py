"""Classifier-free guidance."""

from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from networks.diffusion.guidance import Guidance, combine, guided_velocity
from tests.networks.diffusion.tiny import lightningdit, tiny_inputs


@pytest.fixture
def velocities() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 2, 5, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()


def test_guided_channels_go_past_the_conditional_velocity_and_the_others_keep_it(velocities) -> None:
    conditional, unconditional = velocities
    found = combine(conditional, unconditional, 4.0, channels=3)
    expected = unconditional[:, :3] + 4 * (conditional[:, :3] - unconditional[:, :3])
    assert torch.allclose(found[:, :3], expected, atol=1e-5)
    assert torch.equal(found[:, 3:], conditional[:, 3:])


def test_scale_one_is_the_conditional_velocity_and_scale_zero_the_other(velocities) -> None:
    assert torch.equal(combine(*velocities, scale=1.0), velocities[0])
    assert torch.equal(combine(*velocities, scale=0.0), velocities[1])


def test_all_channels_are_guided_where_there_are_no_more_than_asked_for(velocities) -> None:
    assert torch.equal(combine(*velocities, 2.5, channels=5), combine(*velocities, 2.5))


def test_both_ends_of_the_interval_are_guided_and_scale_one_never_is() -> None:
    guidance = Guidance(2.0, low=0.25, high=0.875)
    assert [t for t in (0.0, 0.25, 0.5, 0.875, 0.876) if guidance.acts_at(t)] == [0.25, 0.5, 0.875]
    assert not Guidance(1.0).acts_at(0.5)


def test_only_where_guidance_acts_the_network_runs_on_both_halves() -> None:
    inputs, network = tiny_inputs(), lightningdit()
    y, guidance = torch.tensor([0, 3, 7]), Guidance(3.0, 2, high=0.5)
    batches = []
    network.register_forward_hook(lambda module, arguments, output: batches.append(len(output)))

    def both(t: float) -> tuple[torch.Tensor, torch.Tensor]:
        times, null = torch.full((3,), t), torch.full_like(y, network.null_label)
        return network.velocity(inputs.x, times, y), network.velocity(inputs.x, times, null)

    with torch.no_grad():
        inside, outside = (
            guided_velocity(network.velocity, inputs.x, t, y, network.null_label, guidance) for t in (0.2, 0.9)
        )
        assert batches == [6, 3]
        assert torch.allclose(inside, combine(*both(0.2), 3.0, 2), atol=1e-5)
        assert not torch.allclose(inside, both(0.2)[0], atol=1e-2)
        assert torch.equal(outside, both(0.9)[0])


def test_impossible_guidance_is_refused() -> None:
    with pytest.raises(UserError, match=r"from t = 0\.8 to 0\.2: expected low <= high"):
        Guidance(2.0, low=0.8, high=0.2)
    with pytest.raises(UserError, match="of 0 channels: expected at least 1, or all"):
        Guidance(2.0, channels=0)
