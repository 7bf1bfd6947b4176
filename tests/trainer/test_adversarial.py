"""Training against discriminators."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from common.errors import CheckpointError
from common.value_range import unit_to_signed
from tests.tiny import fill_weights
from tests.trainer.conftest import build_trainer, run_until
from trainer.systems.base import MicroStep

pytestmark = pytest.mark.usefixtures("narrow_patchgan")

AT = MicroStep(seed=3, step=0, nimg=0, micro_batch=0, is_first=True, share=1.0)
STYLEGAN_T = {
    "discriminator.use_stylegan_t_discriminator": True,
    "discriminator.backbone": "random_tiny",
    "losses.stylegan_t": {"weight": 1.0},
}
BOTH = {
    **STYLEGAN_T,
    "discriminator.use_patchgan_discriminator": True,
    "discriminator.get_interm_feat": True,
    "losses.patchgan": {"weight": 0.5},
    "losses.feature_matching": {"weight": 2.0},
    "losses.ssim": {"weight": 0.3},
}


def filled(config):
    """A trainer whose weights are filled, so that no gradient is hidden by a zero."""
    trainer = build_trainer(config)
    fill_weights(trainer.system.tokenizer)
    return trainer


def trained(trainer) -> dict[str, set[str]]:
    """Names of parameters with a gradient, by network."""
    system = trainer.system
    networks = {"tokenizer": system.tokenizer, "discriminators": system.adversary.discriminators}
    return {
        name: {key for key, p in network.named_parameters() if p.grad is not None} for name, network in networks.items()
    }


def test_each_phase_gives_gradients_to_its_network_only(make_config) -> None:
    trainer = filled(make_config(changes=BOTH))
    batch = next(trainer.data.micro_batches(0))
    discriminator, generator = trainer.system.phases
    trainer.system.backward(discriminator, batch, AT)
    found = trained(trainer)
    assert found["tokenizer"] == set()
    assert found["discriminators"] == set(discriminator.parameters)
    assert not any("backbone" in name for name in discriminator.parameters)
    trainer.system.adversary.discriminators.zero_grad()
    trainer.system.backward(generator, batch, AT)
    found = trained(trainer)
    assert found["tokenizer"] == set(generator.parameters)
    assert found["discriminators"] == set()


def test_an_optimiser_step_of_a_phase_moves_its_network_only(make_config) -> None:
    trainer = filled(make_config(changes=BOTH))
    trainer._start()
    micro_batches, _ = trainer._fetch(trainer.data.micro_batches(0))
    for phase, moved in zip(trainer.system.phases, ("discriminators", "tokenizer"), strict=True):
        before = {name: p.detach().clone() for name, p in all_parameters(trainer)}
        assert trainer.train_phase(phase, micro_batches, {})
        changed = {name.split(".")[0] for name, p in all_parameters(trainer) if not torch.equal(before[name], p)}
        assert changed == {moved}


def all_parameters(trainer):
    for network, module in trainer.system.networks.items():
        for name, parameter in module.named_parameters():
            yield f"{network}.{name}", parameter


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_equal_those_of_one_backward_of_the_weighted_sum(make_config, shared: bool) -> None:
    """The cuts at the images and at the latent change no gradient. The adaptive weight knows no adversarial term, but
    where it shares the backward pass of the decoder."""
    changes = {"equivariance.use_equivariance_regularization": False, "training.share_decoder_backward": shared}
    trainer = filled(make_config(changes={**BOTH, **changes}))
    system, batch = trainer.system, next(trainer.data.micro_batches(0))
    report = system.backward(system.phases[-1], batch, AT)
    found = {name: p.grad.clone() for name, p in system.tokenizer.named_parameters() if p.grad is not None}
    system.tokenizer.zero_grad()

    from losses.schedule import Moment

    passed = system._pass(system.tokenizer, batch, AT, "")
    inputs, moment = system._loss_inputs(passed, batch, Moment(0), AT), Moment(0)
    output = system.tokenizer(passed.images, generator_of_posterior(), passed.transform)
    inputs = replace(
        inputs, reconstruction=output.decoded.reconstruction, pyramid=output.decoded.pyramid, latent=output.latent
    )
    assert torch.equal(inputs.target, unit_to_signed(passed.images))
    reconstruction = system.objective.reconstruction_terms(inputs, moment)
    judged = system.objective.adversarial_terms(system._judged(inputs, None, moment, AT), moment)
    latent = system.objective.latent_terms(inputs, moment)
    last = system.tokenizer.compression.last_weight
    weighed = _sum(reconstruction) + (_sum(judged) if shared else 0)
    (of_images,) = torch.autograd.grad(weighed, last, retain_graph=True)
    (of_vf,) = torch.autograd.grad(latent["vf"].loss, last, retain_graph=True)
    weight = of_images.norm() / (of_vf.norm() + 1e-4)
    loss = _sum(reconstruction) + _sum(judged) + weight * latent["vf"].loss + _sum({"kl": latent["kl"]})
    loss.backward()
    assert report["weight/vf"].item() == pytest.approx(weight.item(), rel=1e-3)
    for name, parameter in system.tokenizer.named_parameters():
        if parameter.grad is not None:
            limit = 1e-4 * max(parameter.grad.abs().max().item(), 1e-3)
            assert (found[name] - parameter.grad).abs().max().item() <= limit, name


def _sum(values):
    return sum(value.loss * value.weight for value in values.values())


def generator_of_posterior():
    from common.random import torch_generator

    return torch_generator(3, "posterior", 0, 0)


def test_a_shared_pass_gives_the_tokenizer_the_same_gradients(make_config) -> None:
    """It differs from two passes only in what the discriminators are shown."""
    gradients = []
    for shared in (False, True):
        trainer = filled(make_config(changes={**STYLEGAN_T, "training.share_generator_forward": shared}))
        batch = next(trainer.data.micro_batches(0))
        trainer.system.backward(trainer.system.phases[0], batch, AT)
        trainer.system.backward(trainer.system.phases[1], batch, AT)
        gradients.append([p.grad.clone() for p in trainer.system.tokenizer.parameters() if p.grad is not None])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_a_shared_backward_pass_saves_the_decoder_one(make_config) -> None:
    passes = []
    for shared in (False, True):
        trainer = filled(make_config(changes={**STYLEGAN_T, "training.share_decoder_backward": shared}))
        through_decoder = []
        trainer.system.tokenizer.decoder.blocks[0].register_full_backward_hook(
            lambda *_, seen=through_decoder: seen.append(1)
        )
        trainer.system.backward(trainer.system.phases[-1], next(trainer.data.micro_batches(0)), AT)
        passes.append(len(through_decoder))
    assert passes == [2, 1]


def test_the_frozen_encoder_sees_the_images_of_a_step_once(make_config) -> None:
    """Its features serve both phases, as good as those of a pass for each, and no other step."""
    gradients = []
    for kept, passes in ((True, 1), (False, 2)):
        trainer = filled(make_config(changes={**STYLEGAN_T, "equivariance.use_equivariance_regularization": False}))
        system, batch, seen = trainer.system, next(trainer.data.micro_batches(0)), []
        system.tokenizer.encoder.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        discriminators, tokenizer = system.phases
        system.backward(discriminators, batch, AT)
        if not kept:
            system._features.clear()
        system.backward(tokenizer, batch, AT)
        assert len(seen) == passes
        gradients.append([p.grad.clone() for p in system.tokenizer.parameters() if p.grad is not None])
        system.backward(discriminators, batch, AT)
        system.backward(tokenizer, batch, replace(AT, step=1))
        assert len(seen) == passes + 2
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_a_discriminator_in_its_warm_up_is_neither_trained_nor_heard(make_config) -> None:
    changes = {**STYLEGAN_T, "losses.stylegan_t": {"weight": 1.0, "use_disc_warmup": True}}
    trainer = run_until(build_trainer(make_config(changes=changes)), step=2)
    fresh = build_trainer(make_config(changes={**changes, "run.run_dir": str(trainer.run_dir) + "_fresh"}))
    before, after = (t.system.networks["discriminators"].state_dict() for t in (fresh, trainer))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_patchgan_that_comes_in_by_its_warm_up_freezes_the_first_half(make_config, caplog) -> None:
    caplog.set_level(logging.INFO)
    changes = {
        **BOTH,
        "losses.patchgan": {"weight": 0.5, "use_disc_warmup": True},
        "training.freeze_below_resolution": 16,
        "training.batch_size": 2,
        "training.total_kimg": 0.02,
        "checkpoint.network_snapshot_ticks": 100,
    }
    config = make_config(changes=changes)
    trainer = build_trainer(config)
    awaited = trainer.system.warmup._awaited["patchgan"]
    awaited.update = lambda value: trainer.step >= 3
    run_until(trainer, step=6)
    assert "The warm-up of losses.patchgan is over." in caplog.text
    grown = trainer.system.selection
    assert grown.modules == ["decoder.blocks.2", "decoder.latent_branches.2"]

    resumed = build_trainer(config)
    run_until(resumed, step=7)
    assert resumed.system.selection == grown
    before, after = (dict(t.system.tokenizer.named_parameters()) for t in (trainer, resumed))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("decoder.blocks.2.", "decoder.latent_branches.2.")) for name in moved)


def test_another_backbone_than_the_one_trained_on_is_refused(make_config, monkeypatch) -> None:
    config = make_config(changes=STYLEGAN_T)
    run_until(build_trainer(config), step=1)
    other = build_trainer(config)
    other.system.adversary.backbone_sha256 = "0" * 64
    with pytest.raises(CheckpointError, match="trained on another frozen backbone"):
        run_until(other)


def test_a_run_takes_the_discriminators_of_the_one_before_it(make_config, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    first = run_until(build_trainer(make_config(changes=STYLEGAN_T)), step=2)
    changes = {**BOTH, "run.run_dir": str(tmp_path / "next"), "training.init_from": str(first.run_dir)}
    second = build_trainer(make_config(changes=changes))
    second._start()
    assert "weights and EMA of the tokenizer and its discriminators" in caplog.text
    assert "holds no PatchGAN; the one here starts from its initial weights" in caplog.text
    before, after = (t.system.networks["discriminators"].state_dict() for t in (first, second))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_discriminators_of_a_conditional_decoder_see_its_labels(make_config) -> None:
    changes = {
        **STYLEGAN_T,
        "data.label_type": "cls2id",
        "decoder.conditional": True,
        "decoder.label_type": "cls2id",
        "decoder.label_dim": 3,
        "losses.matching_aware": {"weight": 1.0},
    }
    trainer = filled(make_config(changes=changes))
    batch = next(trainer.data.micro_batches(0))
    report = trainer.system.backward(trainer.system.phases[0], batch, AT)
    assert {"discriminator/stylegan_t", "discriminator/matching_aware"} <= set(report)
    maps = [p for n, p in trainer.system.adversary.discriminators.named_parameters() if "label" in n or "map" in n]
    assert maps and all(p.grad is not None and p.grad.abs().max() > 0 for p in maps)
