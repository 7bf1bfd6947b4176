"""`training.compile`: decoder and discriminators as compiled programs."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.test_adversarial import AT, BOTH, all_parameters, filled

SMALL = {"data.resolution": 32, "decoder.num_blocks": 3, "equivariance.use_equivariance_regularization": False}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients_of_a_step(config) -> dict[str, torch.Tensor]:
    trainer = filled(config)
    batch = next(trainer.data.micro_batches(0))
    for phase in trainer.system.phases:
        trainer.system.backward(phase, batch, AT)
    return {name: p.grad.clone() for name, p in all_parameters(trainer) if p.grad is not None}


def compare(make_config, monkeypatch, backend: str, changes) -> None:
    """Compiled and not: the same names, hence checkpoints, and the same gradients up to rounding."""
    seen = []
    compile_module = torch.nn.Module.compile

    def spied(module, *arguments, **options):
        seen.append((type(module).__name__, options.get("fullgraph", False)))
        compile_module(module, *arguments, backend=backend, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", spied)
    changes = {**SMALL, **BOTH, **changes}
    plain = gradients_of_a_step(make_config(changes=changes))
    compiled = gradients_of_a_step(make_config(changes={**changes, "training.compile": True}))
    assert ("Decoder", True) in seen and {"PatchGAN", "TappedViT"} <= {name for name, _ in seen}
    assert plain.keys() == compiled.keys()
    whole = torch.stack([expected.norm() for expected in plain.values()]).norm()
    for name, expected in plain.items():
        # By the norm, for rounding may turn the sign of an L1 term's gradient at a pixel; and with some room for
        # gradients that cancel almost.
        assert (compiled[name] - expected).norm() <= 1e-2 * expected.norm() + 1e-4 * whole, name


def test_the_decoder_is_one_program_without_breaks(make_config, monkeypatch) -> None:
    """`fullgraph` makes a break an error; what the graph computes is left to PyTorch here, for speed."""
    compare(make_config, monkeypatch, "eager", {"training.recompute_above_resolution": 8})


@pytest.mark.slow
def test_compiled_networks_have_the_gradients_of_others(make_config, monkeypatch) -> None:
    compare(make_config, monkeypatch, "inductor", {})
