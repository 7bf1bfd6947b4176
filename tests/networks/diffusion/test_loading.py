"""Reading the reference's checkpoints of diffusion transformers."""

from __future__ import annotations

import argparse
import fractions
import logging

import pytest
import torch

from common.errors import CheckpointError
from networks.checkpoint.state_file import read_state_file
from networks.diffusion.loading import load_reference_weights
from tests.networks.diffusion.published import REFERENCE, expand, on_meta
from tests.networks.diffusion.tiny import lightningdit, reg_sit


def shifted(state: dict) -> dict:
    """Other weights of the same names."""
    return {name: value + 1 for name, value in state.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "0700000.pt"


@pytest.mark.parametrize("build", [lightningdit, reg_sit])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_ema_is_preferred_and_the_prefix_of_parallel_training_is_taken_off(build, prefix, path) -> None:
    network = build()
    model = {prefix + name: value for name, value in network.state_dict().items()}
    torch.save({"model": model, "ema": shifted(model), "opt": {"state": {}}, "config": {"train": {}}}, path)
    loaded = build()
    for weights, expected in (("ema", shifted(network.state_dict())), ("raw", network.state_dict())):
        load_reference_weights(loaded, path, weights)
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
@pytest.mark.parametrize("model_type", ["LightningDiT-XL/1", "SiT-XL/1"])
def test_files_with_the_entries_of_the_published_networks_load_strictly(model_type, path) -> None:
    network, facts = on_meta(model_type), REFERENCE["lightningdit" if "Lightning" in model_type else "reg_sit"]
    value = torch.zeros(())  # one number on disk, whatever the shape
    state = {name: value.expand(shape) for name, (_, shape) in expand(facts).items()}
    torch.save({"model": state, "ema": state, "opt": {}}, path)
    load_reference_weights(network, path)
    torch.save({"ema": dict(list(state.items())[:-1])}, path)
    with pytest.raises(CheckpointError, match=r"1 missing, e\.g\."):
        load_reference_weights(network, path)


def test_a_bare_state_dict_and_a_file_without_ema_load(path, caplog) -> None:
    state = lightningdit().state_dict()
    torch.save(state, path)
    assert read_state_file(path).keys() == state.keys()
    torch.save({"model": state}, path)
    with caplog.at_level(logging.INFO):
        assert read_state_file(path).keys() == state.keys()
    assert "has no ema; model is used" in caplog.text


def test_arguments_of_a_reg_training_may_be_in_the_file(path) -> None:
    network = reg_sit()
    arguments = argparse.Namespace(model="SiT-XL/1", learning_rate=2e-4, qk_norm=True, exp_name="reg")
    torch.save({"model": network.state_dict(), "ema": network.state_dict(), "args": arguments, "steps": 1}, path)
    load_reference_weights(reg_sit(), path)


def test_any_other_object_is_refused_also_inside_the_arguments(path) -> None:
    state = reg_sit().state_dict()
    for content in (fractions.Fraction(1, 2), argparse.Namespace(lr=fractions.Fraction(1, 2))):
        torch.save({"ema": state, "args": content}, path)
        with pytest.raises(CheckpointError, match=r"object of fractions\.Fraction, and reading that could execute"):
            read_state_file(path)


def test_arguments_are_admitted_for_this_file_alone(path) -> None:
    from common.torch_file import read_torch_file

    torch.save({"args": argparse.Namespace(lr=1.0)}, path)
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        read_torch_file(path)


def test_every_kind_of_misfit_stands_in_one_message_and_nothing_is_loaded(path) -> None:
    network = reg_sit()
    state = shifted(network.state_dict())
    del state["wg_norm.weight"]
    state["extra"] = torch.zeros(1)
    state["x_embedder.proj.weight"] = torch.zeros(32, 4, 1, 1)
    torch.save(state, path)
    before = network.blocks[0].attn.proj.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_reference_weights(network, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: the weights do not fit the configuration: ")
    for part in (
        "1 missing, e.g. wg_norm.weight",
        "1 unexpected, e.g. extra",
        "1 of another shape, e.g. x_embedder.proj.weight is [32, 4, 1, 1], expected [32, 5, 1, 1]",
    ):
        assert part in message
    assert torch.equal(network.blocks[0].attn.proj.weight, before)


@pytest.mark.parametrize(("build", "key"), [(lightningdit, "use_qknorm"), (reg_sit, "qk_norm")])
def test_weights_trained_without_normalised_heads_say_which_key_to_set(build, key, path) -> None:
    torch.save(build(**{key: False}).state_dict(), path)
    with pytest.raises(CheckpointError, match=rf"missing, e\.g\. blocks\.0\.attn\.q_norm.*\. Set {key}: false"):
        load_reference_weights(build(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "found list, expected a dictionary"),
        ({"ema": {}}, "ema is empty, expected a state dict"),
        ({"ema": [1]}, "ema is a list, expected a state dict"),
        ({"state": {"a": 1}}, "entry 'state' is dict, expected a tensor; a checkpoint has its weights under ema"),
        ({"model": {"a": 1}}, "model: entry 'a' is int, expected a tensor"),
    ],
)
def test_files_that_hold_something_else_are_refused(content, message, path) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_state_file(path)


def test_missing_and_damaged_files_are_refused(path) -> None:
    with pytest.raises(CheckpointError, match=r"0700000\.pt: no such file"):
        read_state_file(path)
    torch.save(lightningdit().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="is cut off"):
        read_state_file(path)
