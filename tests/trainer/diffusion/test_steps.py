"""One step of each system, against its definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.networks.diffusion.tiny import awake
from tests.trainer.diffusion.tiny_runs import CLASSES, trainer_of
from trainer.systems.base import MicroStep

AT = MicroStep(seed=3, step=0, nimg=0, micro_batch=0, is_first=True, share=0.5)


def one_step(values: dict, **changes):
    """The system, its first micro-batch and what the step reports; every weight counts."""
    trainer = trainer_of(values, **changes)
    awake(trainer.system.network)
    batches = trainer.data.micro_batches(0)
    batch = next(batches)
    batches.close()
    return trainer.system, batch, trainer.system.backward(trainer.system.phases[0], batch, AT)


def noised(z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(1 - t) data + t noise, sample by sample."""
    t = t.view(-1, *[1] * (z.ndim - 1))
    return (1 - t) * z + t * noise


def test_a_step_of_lightningdit_is_flow_matching_of_the_velocity(values_of) -> None:
    system, batch, report = one_step(values_of("lightningdit"))
    noise, t, y = (batch.drawn[name] for name in ("noise_0", "t", "y"))
    with torch.no_grad():
        # The convention of the weights: 1 - t, and data - noise.
        v = system.network(noised(batch.z, noise, t), 1 - t, y)
    target = batch.z - noise
    mse = (v - target).square().mean()
    cosine = 1 - F.cosine_similarity(v, target, dim=1).mean()
    for name, expected in (("mse", mse), ("cosine", cosine), ("total", mse + cosine)):
        assert report[f"loss/{name}"].item() == pytest.approx(expected.item(), abs=1e-6), name


@pytest.mark.parametrize("prediction", ["noise", "score"])
def test_a_network_may_predict_noise_or_score(prediction, values_of) -> None:
    changes = {"transport.prediction": prediction, "transport.use_cosine_loss": False}
    system, batch, report = one_step(values_of("lightningdit"), **changes)
    noise, t = batch.drawn["noise_0"], batch.drawn["t"]
    with torch.no_grad():
        output = system.network(noised(batch.z, noise, t), 1 - t, batch.drawn["y"])
    error = output - noise if prediction == "noise" else output * t.view(-1, 1, 1, 1) + noise
    assert report["loss/mse"].item() == pytest.approx(error.square().mean().item(), abs=1e-6)


def test_a_step_of_reg_denoises_both_and_aligns_tokens(values_of) -> None:
    system, batch, report = one_step(values_of("reg"))
    noise, class_noise, t, y = (batch.drawn[name] for name in ("noise_0", "noise_1", "t", "y"))
    (tokens,) = system.targets(batch.images).tokens
    token = tokens[:, 0]
    with torch.no_grad():
        output = system.network(noised(batch.z, noise, t), t, y, noised(token, class_noise, t))
    denoise = (output.latent - (noise - batch.z)).square().mean()
    cls = (output.class_token - (class_noise - token)).square().mean()
    proj = -F.cosine_similarity(output.projections[0], tokens, dim=-1).mean()
    total = denoise + 0.5 * proj + 0.03 * cls
    for name, expected in (("denoise", denoise), ("cls", cls), ("proj", proj), ("total", total)):
        assert report[f"loss/{name}"].item() == pytest.approx(expected.item(), abs=1e-5), name


@pytest.mark.parametrize("system", ["lightningdit", "reg"])
def test_every_trained_weight_gets_its_share_of_the_gradient(system, values_of) -> None:
    found, batch, _ = one_step(values_of(system), **{"network.class_dropout_prob": 0.0})
    assert torch.equal(batch.drawn["y"], batch.labels) and batch.labels.max() < CLASSES
    gradients = {name: p.grad for name, p in found.network.named_parameters()}
    assert gradients.pop("pos_embed") is None
    silent = {name for name, grad in gradients.items() if grad is None or not grad.any()}
    assert silent <= {name for name in gradients if name.endswith("attn.k_norm.bias")}  # which softmax takes away
    again = {name: grad.clone() for name, grad in gradients.items()}
    found.network.zero_grad()
    found.losses(batch)["loss/total"].backward()
    for name, p in found.network.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(again[name], 0.5 * p.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_labels_are_dropped_as_often_as_asked_for(values_of) -> None:
    trainer = trainer_of(values_of("lightningdit"), **{"training.batch_size": 500})
    batch = next(trainer.data.micro_batches(0))
    dropped = batch.drawn["y"] == CLASSES
    assert 0.25 < dropped.float().mean() < 0.35
    assert torch.equal(batch.drawn["y"][~dropped], batch.labels[~dropped])
    assert 0.45 < batch.drawn["t"].mean() < 0.55 and abs(batch.drawn["t"].std() - 0.208) < 0.03  # logit-normal
