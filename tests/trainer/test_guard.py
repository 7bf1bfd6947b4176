"""The guard: what it refuses, that a refused step changes nothing, and the one roll-back."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from common.errors import CheckpointError, UserError
from tests.trainer.conftest import build_trainer, run_until, state_of
from trainer.alarms import silent_deaths
from trainer.config import AdamConfig, GuardConfig
from trainer.guard import Guard
from trainer.metrics import read_log
from trainer.systems.base import Phase

PHASE = Phase(
    "generator",
    nn.Identity(),
    {},
    AdamConfig(),
    reconstruction_losses=frozenset({"loss/l1_pixel"}),
    bounded_losses={"loss/stylegan_t": 1e4},
)


def values(norm: float = 1.0, l1: float = 0.1, **others: float) -> dict[str, float]:
    return {"loss/l1_pixel": l1, "gradient_norm/generator": norm, **others}


def settled_guard(**options) -> Guard:
    """A guard that has accepted 20 steps."""
    guard = Guard(GuardConfig(**options), start_nimg=0)
    for step in range(20):
        assert guard.accepts(PHASE, step, 4 * step, [values()])
        guard.count(step, accepted=True)
    return guard


@pytest.mark.parametrize("norm", [0.0, 1.0, 99.9, 100.0])
def test_ordinary_gradient_norms_are_accepted(norm: float) -> None:
    assert settled_guard().accepts(PHASE, 20, 80, [values(norm)])


def test_a_gradient_norm_of_more_than_a_hundred_times_the_median_is_a_spike(caplog) -> None:
    guard = settled_guard()
    assert not guard.accepts(PHASE, 20, 80, [values(), values(100.5)])
    expected = "rank 1: gradient_norm/generator = 100.5 (more than 100 times the median 1 of the last steps)"
    assert f"step 20 is left out; {expected}." in caplog.text


def test_the_first_twenty_steps_may_have_any_gradient_norm() -> None:
    guard = Guard(GuardConfig(), start_nimg=0)
    assert guard.accepts(PHASE, 0, 0, [values(1e-3)])
    assert guard.accepts(PHASE, 19, 0, [values(1e3)])


def test_a_jump_of_a_reconstruction_loss_is_refused_and_its_reference_stays(caplog) -> None:
    guard = settled_guard()
    assert not guard.accepts(PHASE, 20, 80, [values(l1=1.01)])
    assert "rank 0: loss/l1_pixel = 1.01 (more than 10 times the 0.1 of the step before)" in caplog.text
    assert guard.monitor.references["loss/l1_pixel"] == pytest.approx(0.1)
    assert guard.accepts(PHASE, 21, 84, [values(l1=0.99)])


def test_a_discriminator_loss_out_of_bounds_is_refused() -> None:
    guard = settled_guard()
    assert guard.accepts(PHASE, 20, 80, [values(**{"loss/stylegan_t": -1e4})])
    assert not guard.accepts(PHASE, 21, 84, [values(**{"loss/stylegan_t": -1.001e4})])


def test_in_the_period_of_grace_only_what_is_not_finite_is_refused() -> None:
    guard = Guard(GuardConfig(grace_kimg=0.1), start_nimg=1000)
    assert guard.accepts(PHASE, 0, 1000, [values(l1=0.1)])
    assert guard.accepts(PHASE, 1, 1100, [values(l1=10.0)])
    assert not guard.accepts(PHASE, 1, 1100, [values(l1=float("nan"))])
    assert not guard.accepts(PHASE, 2, 1101, [values(l1=101.0)])


def test_a_guard_goes_on_exactly_from_its_state() -> None:
    guard = settled_guard()
    guard.count(20, accepted=False)
    other = Guard(GuardConfig(), start_nimg=0)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert other.state_dict() == guard.state_dict()
    assert not other.accepts(PHASE, 21, 84, [values(100.5)])


# --- in a run ------------------------------------------------------------------------------------------------------


def spoil_steps(trainer, steps: set[int], factor: float) -> None:
    """Multiply every gradient of some steps by a factor."""
    backward = trainer.system.backward

    def spoilt(phase, batch, at):
        report = backward(phase, batch, at)
        if at.step in steps:
            for parameter in phase.parameters.values():
                parameter.grad.mul_(factor)
        return report

    trainer.system.backward = spoilt


@pytest.fixture(scope="module")
def settled(config_of_run, tmp_path_factory):
    """A trainer that has done 21 steps, and its batches."""
    trainer = build_trainer(config_of_run(tmp_path_factory.mktemp("settled")))
    trainer._start()
    batches = trainer.data.micro_batches(0)
    for _ in range(21):
        trainer.train_step(batches)
    return trainer, batches


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e4])
def test_a_bad_gradient_leaves_every_bit_as_it_was(settled, factor: float, caplog) -> None:
    trainer, batches = settled
    step = trainer.step
    spoil_steps(trainer, {step}, factor)
    before = state_of(trainer)
    trainer.train_step(batches)
    after = state_of(trainer)
    assert not [name for name in before if not torch.equal(before[name], after[name])]
    assert f"step {step} is left out; rank 0: gradient_norm/generator = " in caplog.text
    trainer.train_step(batches)
    after = state_of(trainer)
    assert [name for name in before if not torch.equal(before[name], after[name])]


LASTING = {"guard.max_skipped_steps": 2, "training.total_kimg": 0.04, "training.kimg_per_tick": 0.008}


def test_lasting_trouble_rolls_back_once_and_leaves_the_bad_steps_out(make_config, caplog) -> None:
    config = make_config(changes=LASTING)
    trainer = build_trainer(config)
    spoil_steps(trainer, {4, 5}, float("nan"))
    run_until(trainer)
    assert trainer.nimg == 40
    assert "Step 6: 2 steps in a row were refused; rolled back to " in caplog.text
    assert trainer.guard.left_out == [4, 5]
    lines = read_log(trainer.run_dir / "log.jsonl")
    seen = [line["progress/nimg"] for line in lines]
    assert seen == sorted(set(seen)) and seen[-1] == 40
    assert any(line.get("guard/left_out") == 1.0 for line in lines)

    undisturbed = build_trainer(make_config(changes={**LASTING, "run.run_dir": str(trainer.run_dir) + "_left_out"}))
    undisturbed.guard.left_out = [4, 5]
    run_until(undisturbed)
    expected, found = state_of(undisturbed), state_of(trainer)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_trouble_after_the_roll_back_stops_the_run_with_its_reason(make_config) -> None:
    trainer = build_trainer(make_config(changes=LASTING))
    spoil_steps(trainer, {4, 5, 6, 7}, float("inf"))
    reason = (
        r"stopped at step 8: 2 steps in a row were refused, after a roll-back already \(last: rank 0: gradient_norm"
    )
    with pytest.raises(UserError, match=reason):
        run_until(trainer)


def test_trouble_before_the_first_checkpoint_stops_the_run(make_config) -> None:
    trainer = build_trainer(make_config(changes={"guard.max_skipped_steps": 2}))
    spoil_steps(trainer, {0, 1}, float("nan"))
    with pytest.raises(UserError, match=r"stopped at step 2: .* there is no checkpoint to go back to"):
        run_until(trainer)


def test_no_checkpoint_holds_a_value_that_is_not_finite(make_config) -> None:
    trainer = build_trainer(make_config(changes={"training.kimg_per_tick": 1.0}))
    weight = next(iter(trainer.system.tokenizer.decoder.parameters()))
    update = trainer._update_averages

    def spoil():
        update()
        with torch.no_grad():
            weight.view(-1)[0] = float("nan")

    trainer._update_averages = spoil
    trainer.guard.accepts = lambda *arguments: True
    with pytest.raises(CheckpointError, match=r"model_raw\.safetensors: .* holds a value that is not finite"):
        run_until(trainer)
    assert not list((trainer.run_dir / "checkpoints").iterdir())


def test_silent_deaths_are_told_by_name() -> None:
    alive = {"gradient_norm/generator": 1e-3, "loss/kl": 50.0, "discriminator/stylegan_t/accuracy": 0.8}
    assert silent_deaths(alive) == {}
    dead = {"gradient_norm/generator": 0.0, "loss/kl": 1e-4, "discriminator/stylegan_t/accuracy": 1.0}
    assert set(silent_deaths(dead)) == set(dead)
