"""The autoregressive network: names, sizes, initial weights, causality, dropout, bad input, files of the reference."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
import torch

from common.errors import CheckpointError, ConfigError, ShapeError, UserError
from losses.ar import next_token_loss
from networks.ar.config import GPT_SIZES, GPTConfig
from networks.ar.gpt import GPT
from networks.ar.loading import load_reference_weights
from networks.ar.rope import rope_table, rotate
from tests.networks.ar.tiny import TINY, gpt

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "reference_gpt.json").read_text(encoding="utf-8"))


def on_meta(model_type: str) -> GPT:
    with torch.device("meta"):
        return GPT(GPTConfig(model_type=model_type))


def published_entries() -> dict[str, list[int]]:
    """Those of GPT-L, `layers.*` written out."""
    entries, layers = REFERENCE["entries"], range(REFERENCE["layers"])
    of_layer = {name: shape for name, shape in entries.items() if name.startswith("layers.*.")}
    written_out = {name.replace("*", str(n)): shape for n in layers for name, shape in of_layer.items()}
    others = [(name, shape) for name, shape in entries.items() if name not in of_layer]
    return dict([*others[:2], *written_out.items(), *others[2:]])


def tokens_and_labels(images: int = 3, tokens: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(12, (images, tokens), generator=generator), torch.arange(images)


@pytest.mark.parametrize("model_type", GPT_SIZES)
def test_named_size_has_the_published_parameters(model_type: str) -> None:
    network, facts = on_meta(model_type), REFERENCE["sizes"][model_type]
    assert sum(p.numel() for p in network.parameters()) == REFERENCE["parameters"][model_type]
    size, config = network.config.size(), network.config
    found = {"n_layer": size.n_layer, "n_head": size.n_head, "dim": size.dim, "ffn": config.feed_forward_width()}
    assert found | {"head_dim": size.dim // size.n_head} == facts


def test_published_network_has_the_entries_of_the_reference() -> None:
    entries = published_entries()
    assert len(entries) == REFERENCE["entries_in_all"]
    assert {name: list(value.shape) for name, value in on_meta("GPT-L").state_dict().items()} == entries


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "GPT-XS"}, r"found 'GPT-XS'\. Closest: GPT-\w+\. Known: GPT-B"),
        ({"model_type": "GPT-B"}, "GPT-B has n_layer 12, but n_layer is 2; leave that key out"),
        ({"dim": None}, "model_type: gives no size, and neither do the keys dim"),
        ({"n_head": 3}, "dim: 16 cannot be shared among n_head 3"),
        ({"n_head": 8}, "dim: needs heads of a multiple of 4 channels; dim / n_head is 2"),
        ({"n_head": 4, "n_kv_head": 3}, "n_kv_head: 3 does not divide n_head 4"),
        ({"block_size": 15}, "block_size: 15 is no square number"),
    ],
)
def test_keys_that_contradict_one_another_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPT(GPTConfig(**{**TINY, **changes}))


def test_a_new_network_finds_all_codes_equally_likely() -> None:
    network = GPT(GPTConfig(**TINY))
    tokens, labels = tokens_and_labels()
    loss = next_token_loss(network(tokens[:, :-1], labels), tokens)
    assert loss.item() == pytest.approx(math.log(12), abs=1e-6)
    assert network.layers[0].attention.wqkv.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_logits_depend_on_the_class_and_on_earlier_tokens_alone() -> None:
    network = gpt()
    tokens, labels = tokens_and_labels()
    logits = network(tokens[:, :-1], labels)
    assert logits.dtype == torch.float32 and logits.shape == (3, 16, 12)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 12
    other = network(changed[:, :-1], labels)
    assert torch.equal(other[:, :7], logits[:, :7])
    assert (other[:, 7:] - logits[:, 7:]).abs().amax(-1).min() > 1e-4
    assert (network(tokens[:, :-1], labels + 1) - logits).abs().amax(-1).min() > 1e-4
    torch.testing.assert_close(network(tokens[:, :4], labels), logits[:, :5])


def test_the_class_token_has_zero_queries_and_keys_and_others_turn_by_row_and_column() -> None:
    table = rope_table(4, 8)
    assert table.shape == (17, 4, 2) and (table[0] == 0).all()
    x = torch.randn(1, 1, 17, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, table)
    assert (turned[0, 0, 0] == 0).all()
    assert torch.equal(turned[0, 0, 1], x[0, 0, 1])  # row 0, column 0
    row, column = 2, 3
    angles = torch.tensor([row * 1.0, row * 0.01, column * 1.0, column * 0.01])
    pairs = torch.view_as_complex(x[0, 0, 1 + 4 * row + column].reshape(4, 2))
    expected = torch.view_as_real(pairs * torch.polar(torch.ones(4), angles)).flatten()
    torch.testing.assert_close(turned[0, 0, 1 + 4 * row + column], expected)


def test_keys_and_values_may_be_shared_by_heads() -> None:
    shared, own = gpt(n_head=4, n_kv_head=2), gpt(n_head=4)
    assert shared.layers[0].attention.wqkv.weight.shape == (32, 16)
    state = shared.state_dict()
    for name, weight in state.items():
        if name.endswith("wqkv.weight"):
            q, k, v = weight.split([16, 8, 8])
            state[name] = torch.cat([q, *(w.reshape(2, 4, 16).repeat_interleave(2, 0).flatten(0, 1) for w in (k, v))])
    own.load_state_dict(state)
    tokens, labels = tokens_and_labels()
    torch.testing.assert_close(own(tokens[:, :-1], labels), shared(tokens[:, :-1], labels))


@pytest.mark.parametrize(
    "key", ["token_dropout_p", "attn_dropout_p", "resid_dropout_p", "ffn_dropout_p", "drop_path_rate"]
)
def test_each_dropout_acts_in_training_alone_and_follows_the_generator(key: str) -> None:
    none = {name: 0.0 for name in ("token_dropout_p", "resid_dropout_p", "ffn_dropout_p")}
    network, plain = gpt(**{**none, key: 0.5}), gpt(**none)
    tokens, labels = tokens_and_labels(images=8)
    labels %= 5
    assert torch.equal(network(tokens[:, :-1], labels), plain(tokens[:, :-1], labels))
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(network.train()(tokens[:, :-1], labels))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], plain(tokens[:, :-1], labels))


def test_activations_computed_twice_give_the_same_gradients_with_dropout() -> None:
    gradients = []
    for use_checkpoint in (False, True):
        network = gpt(use_checkpoint=use_checkpoint).train()
        tokens, labels = tokens_and_labels()
        torch.manual_seed(0)
        next_token_loss(network(tokens[:, :-1], labels), tokens).backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    network = gpt()
    tokens, labels = tokens_and_labels()
    with pytest.raises(ShapeError, match=r"found tokens \[3, 16\], expected \[B, T\] with T up to 15"):
        network(tokens, labels)
    with pytest.raises(ShapeError, match=r"found labels \[2\] for 3 images"):
        network(tokens[:, :-1], labels[:2])
    with pytest.raises(UserError, match="found the token 12, expected 0 to 11"):
        network(torch.full_like(tokens[:, :-1], 12), labels)
    with pytest.raises(UserError, match="found the label 6, expected 0 to 5"):
        network(tokens[:, :-1], labels + 4)
    with pytest.raises(UserError, match="no null class"):
        _ = gpt(class_dropout_prob=0.0).null_label


# --- files of the reference ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
@pytest.mark.parametrize("name", ["ema", "model", "module", "state_dict"])
def test_a_file_with_the_entries_of_the_published_network_loads_strictly(name: str, tmp_path) -> None:
    network, path = on_meta("GPT-L"), tmp_path / "GPT-L-0750000.pt"
    value = torch.zeros(())  # one number on disk, whatever the shape
    state = {key: value.expand(shape) for key, shape in published_entries().items()}
    torch.save({name: state, "args": argparse.Namespace(gpt_model="GPT-L"), "steps": 1}, path)
    load_reference_weights(network, path)
    torch.save({name: dict(list(state.items())[:-1]) | {"freqs_cis": value}}, path)
    with pytest.raises(CheckpointError, match=r"1 missing, e\.g\. output\.weight; 1 unexpected, e\.g\. freqs_cis"):
        load_reference_weights(network, path)


def test_ema_is_preferred_and_a_table_of_another_size_is_named(tmp_path) -> None:
    network, path = gpt(), tmp_path / "tiny.pt"
    moved = {name: value + 1 for name, value in network.state_dict().items()}
    torch.save({"model": network.state_dict(), "ema": moved}, path)
    for weights, expected in (("ema", moved), ("raw", network.state_dict())):
        loaded = gpt()
        load_reference_weights(loaded, path, weights)
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(CheckpointError, match=r"embeddings of tokens are \[12, 16\]: \[vocab_size, dim\]"):
        load_reference_weights(gpt(vocab_size=13), path)
