"""One step: gradients, the adaptive weight, freezing, the guard."""

from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from losses.vf_alignment import vf_alignment_loss
from networks.checkpoint import to_reference_name
from networks.compression import tokens_to_map
from tests.golden.cases import fill
from tests.trainer.conftest import build_trainer, run_until, state_of
from trainer.systems.base import MicroStep

AT = MicroStep(seed=3, step=0, nimg=0, micro_batch=0, is_first=True, share=1.0)


@pytest.fixture
def filled(make_config):
    """A trainer whose weights are filled, so that no gradient is hidden by a zero."""

    def make(**changes):
        trainer = build_trainer(make_config(changes=changes))
        model = trainer.system.tokenizer
        state = {
            name: fill(to_reference_name(name), list(value.shape))
            for name, value in model.trainable_parts().state_dict().items()
            if name.rsplit(".", 1)[-1] not in ("blur_kernel", "k_bias")
        }
        model.load_state_dict(state, strict=False)
        return trainer

    return make


def backward(trainer):
    batch = next(trainer.data.micro_batches(0))
    (phase,) = trainer.system.phases
    return batch, trainer.system.backward(phase, batch, AT)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(filled, precision: str) -> None:
    trainer = filled(**{"training.precision": precision})
    backward(trainer)
    for name, parameter in trainer.system.tokenizer.named_parameters():
        if name.startswith("encoder."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_the_decoder_first_backward_equals_one_backward_of_the_weighted_sum(filled) -> None:
    """The cut at the latent changes no gradient, and the adaptive weight is that of its definition."""
    trainer = filled(**{"equivariance.use_equivariance_regularization": False})
    batch, report = backward(trainer)
    model = trainer.system.tokenizer
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    from common.random import torch_generator
    from common.resize import resize_images
    from common.value_range import uint8_to_unit, unit_to_signed

    images = uint8_to_unit(batch.images)
    output = model(images, torch_generator(3, "posterior", 0, 0))
    target = unit_to_signed(images)
    difference = target - output.decoded.reconstruction
    reconstruction = difference.abs().mean() + 0.5 * difference.square().mean()
    for side, image in output.decoded.pyramid.items():
        small = unit_to_signed(resize_images(images, "bilinear", size=side))
        reconstruction = reconstruction + 0.1 * (small - image).abs().mean()
    features = output.latent.features
    vf = vf_alignment_loss(output.latent.projected, tokens_to_map(features.levels[-1], features.grids[-1]))
    last = model.compression.head.blocks[-1].mlp.out.weight
    (g_rec,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (g_vf,) = torch.autograd.grad(vf, last, retain_graph=True)
    weight = (g_rec.norm() / (g_vf.norm() + 1e-4)).clamp(0, 1e8)
    total = reconstruction + weight * vf + 1e-6 * output.latent.posterior.kl().mean()
    total.backward()

    assert report["weight/vf"].item() == pytest.approx(weight.item(), rel=1e-4)
    assert report["loss/total"].item() == pytest.approx(total.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            limit = 1e-5 * max(parameter.grad.abs().max().item(), 1e-3)
            assert (found[name] - parameter.grad).abs().max().item() <= limit, name


@pytest.mark.parametrize(
    ("mode", "prefixes"),
    [
        ("train_all", ("compression.", "alignment.", "decoder.")),
        ("train_decoder", ("decoder.",)),
        ("train_the_second_half_decoder", ("decoder.blocks.3.",)),
    ],
)
def test_a_train_mode_trains_what_it_names_and_nothing_else(filled, mode: str, prefixes: tuple[str, ...]) -> None:
    trainer = filled(**{"training.train_mode": mode})
    backward(trainer)
    trained = {name for name, p in trainer.system.tokenizer.named_parameters() if p.grad is not None}
    expected = {n for n, _ in trainer.system.tokenizer.named_parameters() if n.startswith(prefixes)}
    assert trained == expected
    assert set(trainer.system.phases[0].parameters) == expected


def test_a_train_mode_that_selects_nothing_is_refused(make_config) -> None:
    changes = {"training.train_mode": "train_the_second_half_decoder", "training.freeze_below_resolution": 64}
    with pytest.raises(UserError, match="train_the_second_half_decoder selects no parameter"):
        build_trainer(make_config(changes=changes))


def test_a_step_that_is_not_finite_changes_nothing_and_names_rank_and_term(make_config, caplog) -> None:
    trainer = build_trainer(make_config())
    trainer._start()
    system, spoilt = trainer.system, trainer.system.backward

    def with_nan(phase, batch, at):
        report = spoilt(phase, batch, at)
        return {**report, "loss/kl": report["loss/kl"] * float("nan")}

    system.backward = with_nan
    before = state_of(trainer)
    trainer._data_seconds = trainer._clock = 0.0
    trainer.train_step(trainer.data.micro_batches(0))
    after = state_of(trainer)
    unchanged = {name for name in before if "x_avg" not in name}
    assert all(torch.equal(before[name], after[name]) for name in unchanged)
    assert "step 0 is left out, not finite on rank 0: loss/kl = nan" in caplog.text


def test_too_many_bad_steps_in_a_row_stop_the_run(make_config) -> None:
    trainer = build_trainer(make_config(changes={"training.max_skipped_steps": 2}))
    spoilt = trainer.system.backward
    trainer.system.backward = lambda *a: {**spoilt(*a), "loss/kl": torch.tensor(float("inf"))}
    with pytest.raises(UserError, match="2 steps in a row were not finite"):
        run_until(trainer)


def test_a_full_disk_leaves_the_training_and_the_last_checkpoint_alone(make_config, monkeypatch, caplog) -> None:
    from trainer import checkpointing

    save, calls = checkpointing.save, []

    def save_or_fail(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return save(*arguments)

    monkeypatch.setattr(checkpointing, "save", save_or_fail)
    config = make_config(changes={"checkpoint.keep_last": 9})
    trainer = run_until(build_trainer(config))
    assert trainer.nimg == 24
    assert len(calls) == 3
    assert "could not be written: [Errno 28] No space left on device" in caplog.text
