"""Training of a discrete tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.pipeline import Batch
from tests.tiny import DISCRETE, fill_weights
from tests.trainer.conftest import build_trainer, run_until, state_of
from trainer.metrics import read_log
from trainer.systems.base import MicroStep


@pytest.fixture
def discrete_config(make_config):
    """The tiny configuration in discrete mode, with further changes by dotted key."""
    return lambda changes=None, **options: make_config({**DISCRETE, **(changes or {})}, **options)


def backward(trainer, nimg: int = 0):
    (phase,) = trainer.system.phases
    at = MicroStep(seed=3, step=0, nimg=nimg, micro_batch=0, is_first=True, share=1.0)
    return trainer.system.backward(phase, next(trainer.data.micro_batches(0)), at)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_weight_gets_a_gradient(discrete_config, precision) -> None:
    trainer = build_trainer(discrete_config({"training.precision": precision}, sizes={}))
    fill_weights(trainer.system.tokenizer)
    report = backward(trainer)
    assert {"loss/vq", "loss/entropy", "loss/vf", "weight/vf", "latent/codebook_usages"} <= set(report)
    for name, parameter in trainer.system.tokenizer.named_parameters():
        if not name.startswith("encoder."):
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_codebooks_get_a_zero_gradient_outside_the_window_of_their_losses(discrete_config) -> None:
    """Zero and not none: ranks wait for the gradient of every parameter."""
    changes = {"losses.vq": {"weight": 1.0, "start_kimg": 1}, "losses.entropy": None}
    trainer = build_trainer(discrete_config(changes))
    fill_weights(trainer.system.tokenizer)
    backward(trainer, nimg=0)
    gradients = [book.codes.grad for book in trainer.system.tokenizer.quantizer.codebooks]
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
    backward(trainer, nimg=1000)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_codebooks_stay_when_the_decoder_alone_is_trained_and_their_usage_is_still_followed(discrete_config) -> None:
    changes = {"training.train_mode": "train_decoder", "training.total_kimg": 0.004, "losses.entropy": None}
    trainer = build_trainer(discrete_config(changes))
    before = state_of(trainer)
    run_until(trainer)
    moved = {name for name, value in state_of(trainer).items() if name in before and not value.equal(before[name])}
    assert {name for name in moved if "quantizer" in name} == {
        f"{kind}/tokenizer/quantizer.codebooks.{k}.usage" for kind in ("raw", "ema") for k in (0, 1)
    }
    assert not any("optimizer/generator/quantizer" in name for name in state_of(trainer))


def test_usage_moves_once_a_step_by_the_first_micro_batch(discrete_config) -> None:
    usages = []
    for accumulate in (1, 2):
        changes = {"training.accumulate_gradients": accumulate, "training.batch_size": 2 * accumulate}
        trainer = build_trainer(discrete_config(changes))
        (phase,) = trainer.system.phases
        for number, batch in zip(range(accumulate), trainer.data.micro_batches(0)):
            at = MicroStep(seed=3, step=0, nimg=0, micro_batch=number, is_first=number == 0, share=1 / accumulate)
            trainer.system.backward(phase, batch, at)
        usages.append([book.usage.clone() for book in trainer.system.tokenizer.quantizer.codebooks])
        assert all(usage.sum() == pytest.approx(1) for usage in usages[-1])
    assert all(torch.equal(one, two) for one, two in zip(*usages, strict=True))


def test_a_short_training_lowers_the_loss_and_logs_the_usage(discrete_config) -> None:
    changes = {
        "equivariance.use_equivariance_regularization": False,
        "training.total_kimg": 0.064,
        "training.kimg_per_tick": 0.016,
        "losses.vf": None,
        "losses.entropy": None,
        "optimizer.generator.lr": 3e-3,
        "checkpoint.network_snapshot_ticks": 100,
    }
    config = discrete_config(changes, sizes={})
    run_until(build_trainer(config))
    lines = read_log(Path(config.run.run_dir) / "log.jsonl")
    first, last = lines[0], lines[-1]
    assert last["loss/total"] < 0.85 * first["loss/total"]
    assert last["loss/l1_pixel"] < 0.92 * first["loss/l1_pixel"]
    assert last["loss/vq"] < 0.5 * first["loss/vq"]
    assert all(0 < line["latent/codebook_usages"] <= 100 for line in lines)


def test_resuming_is_exact_to_the_last_bit_usage_included(discrete_config, tmp_path) -> None:
    states, logs = [], []
    for name, stops in (("unbroken", []), ("stopped", [3])):
        config = discrete_config({"run.run_dir": str(tmp_path / name)})
        for stop in stops:
            run_until(build_trainer(config), stop)
        states.append(state_of(run_until(build_trainer(config))))
        lines = read_log(tmp_path / name / "log.jsonl")
        logs.append([(line["loss/total"], line["latent/codebook_usages"]) for line in lines])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert logs[0] == logs[1]
    usage = states[0]["raw/tokenizer/quantizer.codebooks.0.usage"]
    assert usage.sum().item() == pytest.approx(1)
    assert torch.equal(usage, states[0]["ema/tokenizer/quantizer.codebooks.0.usage"])


def test_reconstruction_draws_no_noise(discrete_config, tmp_path) -> None:
    from evaluation.reconstruction import Protocol, reconstruct_batch
    from networks.checkpoint import load_tokenizer

    trainer = run_until(build_trainer(discrete_config({"training.total_kimg": 0.004})))
    model = load_tokenizer(trainer.config.run.run_dir)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sampled, mode = (
        reconstruct_batch(model, images, ["a", "b"], Protocol(32, latent=latent)) for latent in ("sample", "mode")
    )
    assert torch.equal(sampled, mode)
    batch = Batch(images, None, None, ["a", "b"], range(2))
    shown = trainer.system.sample_images(batch)  # rounded to the nearest level, and not truncated as files are
    assert (shown.int() - mode.int()).abs().max() <= 1
