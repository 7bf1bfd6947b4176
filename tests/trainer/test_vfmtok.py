"""Training of VFMTok."""

from __future__ import annotations

import pytest
import torch

from common.config import Source
from configs.schema import check
from networks.checkpoint.convert import reference_to_folder
from networks.checkpoint.names import VFMTOK, VFMTOK_DISCRIMINATOR, to_reference_name
from tests.tiny import tiny_vfmtok_values
from tests.trainer.conftest import build_trainer, comparable, merged, run_until, state_of
from trainer.metrics import read_log
from trainer.systems.base import MicroStep

# A discriminator that joins after the first of six steps.
ADVERSARIAL = {
    "discriminator": {
        "use_stylegan_t_discriminator": True,
        "projected_kind": "vfmtok",
        "diffaug": False,
        "backbone": "random_tiny",
    },
    "losses.vfmtok_gan": {"weight": 0.5, "start_kimg": 0.004},
    "optimizer.discriminator": {"lr": 1e-3},
}


@pytest.fixture
def make_vfmtok(tiny_encoder, tiny_data, tmp_path):
    """The tiny configuration with changes by dotted key."""

    def make(changes=None):
        values = merged(tiny_vfmtok_values(tiny_encoder, tiny_data, tmp_path / "run"), changes or {})
        return check(Source("tiny_vfmtok.yaml", values), require_runnable=True).config

    return make


def moment(nimg: int = 0) -> MicroStep:
    return MicroStep(seed=3, step=0, nimg=nimg, micro_batch=0, is_first=True, share=1.0)


def gradients(parameters) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_trained_weight_gets_a_gradient(make_vfmtok, precision) -> None:
    trainer = build_trainer(make_vfmtok({"training.precision": precision}))
    (phase,) = trainer.system.phases
    report = trainer.system.backward(phase, next(trainer.data.micro_batches(0)), moment())
    assert {"loss/l2_pixel", "loss/vq", "loss/entropy", "loss/semantic", "latent/codebook_usages"} <= set(report)
    names = set(phase.parameters)
    assert "decoder.transformer.registers" not in names
    found = gradients(phase.parameters)
    assert set(found) == names
    # Sampling points start with weights of 0 behind them, through which no gradient passes at first.
    silent = {name for name, g in found.items() if g.abs().max() == 0}
    assert all(g.isfinite().all() for g in found.values())
    assert all("query_norm" in name or "cross_attention" in name for name in silent), silent


@pytest.mark.parametrize("kind", ["stylegan_t", "patchgan", "stylegan2"])
def test_each_phase_trains_its_own_network_and_both_see_the_same_reconstruction(
    make_vfmtok, monkeypatch, narrow_patchgan, kind
) -> None:
    switches = {
        f"discriminator.use_{name}_discriminator": name == kind for name in ("stylegan_t", "patchgan", "stylegan2")
    }
    config = make_vfmtok({**ADVERSARIAL, **switches})
    trainer = build_trainer(config)
    system, batch = trainer.system, next(trainer.data.micro_batches(0))
    tokenizer, discriminator = system.phases
    assert [tokenizer.name, discriminator.name] == ["generator", "discriminator"]
    judged = []
    of_reconstruction, backward = system.adversary.of_reconstruction, system.adversary.backward
    monkeypatch.setattr(
        system.adversary, "of_reconstruction", lambda x, *rest: judged.append(x.detach()) or of_reconstruction(x, *rest)
    )
    monkeypatch.setattr(system.adversary, "backward", lambda x, *rest: judged.append(x) or backward(x, *rest))
    at = moment(nimg=8)
    report = system.backward(tokenizer, batch, at)
    assert report["loss/vfmtok_gan"].isfinite()
    assert gradients(tokenizer.parameters) and not gradients(discriminator.parameters)
    before = {name: g.clone() for name, g in gradients(tokenizer.parameters).items()}
    system.backward(discriminator, batch, at)
    assert gradients(discriminator.parameters)
    assert all(torch.equal(g, before[name]) for name, g in gradients(tokenizer.parameters).items())
    assert torch.equal(*judged)


def test_the_discriminator_waits_for_its_term(make_vfmtok) -> None:
    trainer = run_until(build_trainer(make_vfmtok(ADVERSARIAL)))
    first, second, *_ = read_log(trainer.run_dir / "log.jsonl")
    assert "loss/vfmtok_gan" not in first and "discriminator/vfmtok_gan" not in first
    assert second["loss/vfmtok_gan"] > 0 and second["discriminator/vfmtok_gan"] > 0


def test_resuming_is_exact_with_dropout_a_discriminator_and_accumulation(make_vfmtok, tmp_path) -> None:
    states = []
    for name, stops in (("unbroken", []), ("stopped", [1, 4])):
        changes = {"run.run_dir": str(tmp_path / name), "training.accumulate_gradients": 2, **ADVERSARIAL}
        config = make_vfmtok(changes)
        assert config.decode_transformer.dropout == 0.1
        for stop in stops:
            run_until(build_trainer(config), stop)
        states.append(state_of(run_until(build_trainer(config))))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert comparable(tmp_path / "unbroken") == comparable(tmp_path / "stopped")


def test_dropout_is_keyed_by_step_and_micro_batch_alone(make_vfmtok) -> None:
    trainer = build_trainer(make_vfmtok())
    (phase,) = trainer.system.phases
    batch = next(trainer.data.micro_batches(0))

    def loss(step: int, micro_batch: int) -> float:
        torch.rand(7)  # whatever else is drawn
        at = MicroStep(seed=3, step=step, nimg=0, micro_batch=micro_batch, is_first=False, share=1.0)
        return trainer.system.backward(phase, batch, at)["loss/semantic"].item()

    values = [loss(0, 0), loss(1, 0), loss(0, 1), loss(0, 0)]
    assert values[0] == values[3] and len(set(values)) == 3


def test_a_run_goes_on_from_the_weights_of_another(make_vfmtok, tmp_path) -> None:
    first = run_until(build_trainer(make_vfmtok({**ADVERSARIAL, "run.run_dir": str(tmp_path / "first")})))
    changes = {**ADVERSARIAL, "run.run_dir": str(tmp_path / "second"), "training.init_from": str(tmp_path / "first")}
    second = build_trainer(make_vfmtok(changes))
    second.system.load_initial(str(tmp_path / "first"))
    expected = {k: v for k, v in state_of(first).items() if not k.startswith("optimizer/")}
    found = state_of(second)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("converted", [False, True], ids=["file", "folder made of it"])
def test_a_run_starts_from_a_file_of_the_reference_with_its_discriminator(make_vfmtok, tmp_path, converted) -> None:
    earlier = build_trainer(make_vfmtok({**ADVERSARIAL, "run.random_seed": 9})).system
    judges = earlier.adversary.discriminators.trainable_parts().state_dict()
    content = {
        "ema": named(earlier.average.trainable_parts().state_dict(), VFMTOK),
        "model": named(earlier.tokenizer.trainable_parts().state_dict(), VFMTOK),
        "discriminator": named(judges, VFMTOK_DISCRIMINATOR),
    }
    path = tmp_path / "vit_vqgan_step_1.pt"
    torch.save(content, path)
    if converted:
        reference_to_folder(path, tmp_path / "folder", earlier.config.tokenizer())
        path = tmp_path / "folder"
    system = build_trainer(make_vfmtok({**ADVERSARIAL, "training.init_from": str(path)})).system
    taken = system.load_initial(str(path)).taken
    assert "and its discriminators" in taken
    found = system.adversary.discriminators.trainable_parts().state_dict()
    assert all(torch.equal(found[name], value) for name, value in judges.items())
    queries = [s.tokenizer.region_encoder.queries for s in (system, earlier)]
    assert torch.equal(*queries)


def named(state: dict[str, torch.Tensor], rows) -> dict[str, torch.Tensor]:
    """Weights under the reference's names."""
    return {to_reference_name(name, rows): value for name, value in state.items() if not name.endswith(".usage")}
