"""One step: gradients, the adaptive weight, freezing, the guard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.checkpoint_folder import list_checkpoints
from common.errors import CheckpointError, UserError
from losses.vf_alignment import vf_alignment_loss
from tests.tiny import fill_weights
from tests.trainer.conftest import build_trainer, run_until, state_of
from trainer.systems.base import MicroStep

AT = MicroStep(seed=3, step=0, nimg=0, micro_batch=0, is_first=True, share=1.0)


@pytest.fixture
def filled(make_config):
    """A trainer whose weights are filled, so that no gradient is hidden by a zero."""

    def make(changes=None, **options):
        trainer = build_trainer(make_config(changes, **options))
        fill_weights(trainer.system.tokenizer)
        return trainer

    return make


def backward(trainer):
    batch = next(trainer.data.micro_batches(0))
    (phase,) = trainer.system.phases
    return batch, trainer.system.backward(phase, batch, AT)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(filled, precision: str) -> None:
    trainer = filled({"training.precision": precision}, sizes={})
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
    trainer = filled({"equivariance.use_equivariance_regularization": False})
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
    vf = vf_alignment_loss(output.latent.projected, features.as_map(-1))
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
        # Of the blocks with 8, 16 and 32 pixels, that above 16.
        ("train_the_second_half_decoder", ("decoder.blocks.2.", "decoder.latent_branches.2.")),
    ],
)
def test_a_train_mode_trains_what_it_names_and_nothing_else(filled, mode: str, prefixes: tuple[str, ...]) -> None:
    trainer = filled({"training.train_mode": mode, "training.freeze_below_resolution": 16})
    backward(trainer)
    trained = {name for name, p in trainer.system.tokenizer.named_parameters() if p.grad is not None}
    expected = {n for n, _ in trainer.system.tokenizer.named_parameters() if n.startswith(prefixes)}
    assert trained == expected
    assert set(trainer.system.phases[0].parameters) == expected


def test_a_train_mode_that_selects_nothing_is_refused(make_config) -> None:
    changes = {"training.train_mode": "train_the_second_half_decoder", "training.freeze_below_resolution": 64}
    with pytest.raises(UserError, match="train_the_second_half_decoder selects no parameter"):
        build_trainer(make_config(changes=changes))


def spoil(trainer, make):
    """Let a system's report or gradients be changed after each backward pass."""
    system, backward_pass = trainer.system, trainer.system.backward

    def spoilt(phase, batch, at):
        return make(phase, backward_pass(phase, batch, at))

    system.backward = spoilt


def nan_in_a_term(phase, report):
    return {**report, "loss/kl": report["loss/kl"] * float("nan")}


def nan_in_a_gradient(phase, report):
    next(iter(phase.parameters.values())).grad[0] = float("inf")
    return report


@pytest.mark.parametrize(
    ("make", "named"), [(nan_in_a_term, "loss/kl = nan"), (nan_in_a_gradient, "gradient_norm/generator = inf")]
)
def test_a_step_that_is_not_finite_changes_nothing_and_names_rank_and_term(make_config, caplog, make, named) -> None:
    trainer = build_trainer(make_config())
    trainer._start()
    trainer._start_clocks()
    batches = trainer.data.micro_batches(0)
    trainer.train_step(batches)
    spoil(trainer, make)
    before = state_of(trainer)
    trainer.train_step(batches)
    after = state_of(trainer)
    assert not [name for name in before if not torch.equal(before[name], after[name])]
    assert f"step 1 is left out; rank 0: {named} (not finite)" in caplog.text


def test_a_full_disk_leaves_the_training_and_the_last_checkpoint_alone(make_config, monkeypatch, caplog) -> None:
    """What safetensors raises when the disk is full, at the second of three checkpoints."""
    from safetensors import SafetensorError

    from networks.checkpoint import folder

    save_file, files = folder.save_file, []

    def save_or_fail(tensors, path):
        files.append(path)
        if len(files) == 4:  # three files a checkpoint
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    monkeypatch.setattr(folder, "save_file", save_or_fail)
    config = make_config(changes={"checkpoint.keep_last": 9})
    trainer = run_until(build_trainer(config))
    assert trainer.nimg == 24
    assert "The checkpoint after 20 images could not be written" in caplog.text
    names = [path.name for path in list_checkpoints(config.run.run_dir)]
    assert names == ["checkpoint-000000000012", "checkpoint-000000000024"]
    assert not list((Path(config.run.run_dir) / "checkpoints").glob(".*"))


def test_a_run_whose_last_checkpoint_fails_is_an_error(make_config, monkeypatch) -> None:
    from trainer import checkpointing

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing, "save", fail)
    config = make_config(changes={"training.kimg_per_tick": 1.0})
    with pytest.raises(CheckpointError, match=r"after 24 images could not be written .*Make room"):
        run_until(build_trainer(config))


def test_optimiser_state_returns_in_the_parameters_memory_layout() -> None:
    from trainer.config import AdamConfig
    from trainer.optimizer import build_adam, load_optimizer_tensors, optimizer_tensors

    def network():
        torch.manual_seed(0)
        return torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)

    def step(module, optimizer, times):
        images = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        for _ in range(times):
            optimizer.zero_grad()
            module(images).square().mean().backward()
            optimizer.step()

    whole, resumed = network(), network()
    optimizers = [build_adam(dict(m.named_parameters()), AdamConfig(lr=0.1), fused=True) for m in (whole, resumed)]
    step(whole, optimizers[0], 1)
    resumed.load_state_dict(whole.state_dict())
    tensors = optimizer_tensors(optimizers[0], dict(whole.named_parameters()))
    load_optimizer_tensors(optimizers[1], dict(resumed.named_parameters()), tensors)
    step(whole, optimizers[0], 2)
    step(resumed, optimizers[1], 2)
    assert torch.equal(whole.weight, resumed.weight)
