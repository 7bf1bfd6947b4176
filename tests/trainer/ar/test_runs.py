"""Runs of autoregressive models: resumed, split over ranks, started from others, refused, learning."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch

from common.errors import CheckpointError, ConfigError, DataError, UserError
from data.tokens import TokenFolder
from networks.ar.folder import load_gpt_weights
from tests.faults.ranks import run_ranks
from tests.trainer.ar.tiny_runs import CODES, run_values, write_discrete_tokenizer, write_tokens
from tests.trainer.conftest import comparable, run_until, state_of
from tests.trainer.diffusion.tiny_runs import trainer_of
from trainer.metrics import read_log

sources = pytest.mark.parametrize("source", ["tokens", "images"])


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@sources
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_an_unbroken_one(source, precision, values_of, tmp_path) -> None:
    """Networks, EMA, optimiser and log to the bit, with all dropouts, whatever the workers."""
    options = {"training.precision": precision, "training.accumulate_gradients": 2, "network.drop_path_rate": 0.2}
    unbroken = run_until(trainer_of(values_of(source, "unbroken"), **options))
    values = values_of(source, "stopped")
    for stop, workers in ((2, 1), (5, 0)):
        run_until(trainer_of(values, **options, **{"data.workers": workers}), stop)
    torch.manual_seed(precision == "bf16")  # no draw may depend on what came before
    stopped = run_until(trainer_of(values, **options))
    assert (stopped.step, stopped.nimg) == (6, 24)
    assert_same(state_of(stopped), state_of(unbroken))
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "unbroken")
    log = comparable(tmp_path / "stopped")
    assert log[0]["loss/total"] == pytest.approx(math.log(CODES), abs=1e-3)
    assert all(line["gradient_norm/backbone"] > 0 for line in log)


def test_a_new_mask_and_other_labels_are_drawn_in_every_step(values_of) -> None:
    trainer = trainer_of(values_of("tokens"), **{"training.accumulate_gradients": 2})
    torch.nn.init.normal_(trainer.system.network.output.weight)
    found = {}
    (phase,) = trainer.system.phases
    from trainer.systems.base import MicroStep

    batch = next(trainer.data.micro_batches(0))
    for step, micro_batch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        at = MicroStep(seed=3, step=step, nimg=0, micro_batch=micro_batch, is_first=True, share=1.0)
        found.setdefault((step, micro_batch), set()).add(trainer.system.backward(phase, batch, at)["loss/total"].item())
    assert [len(values) for values in found.values()] == [1, 1, 1]
    assert len(set.union(*found.values())) == 3
    dropped = trainer.system.with_dropped(torch.zeros(2000, dtype=torch.int64), range(2000)) == 3
    assert 0.25 < dropped.float().mean() < 0.35
    assert torch.equal(
        trainer.system.with_dropped(torch.zeros(9, dtype=torch.int64), range(700, 709)) == 3, dropped[700:709]
    )


def train_rank(values: dict, rank: int) -> list:
    """One run; the tokens of its first step by position."""
    trainer = trainer_of(values)
    batches = trainer.data.micro_batches(0)
    found = []
    for _ in range(trainer.training.accumulate_gradients):
        batch = next(batches)
        found += [[p, *row] for p, row in zip(batch.positions, trainer.system.tokens(batch).tolist())]
    batches.close()
    trainer.run()
    return found


@sources
def test_ranks_and_accumulation_share_the_same_step(source, values_of, tmp_path) -> None:
    first, drawn = [], []
    for name, ranks, accumulate in (("accumulated", 1, 2), ("ranks", 2, 1)):
        values = values_of(source, name)
        values["training"] |= {"accumulate_gradients": accumulate, "total_kimg": 0.008, "kimg_per_tick": 0.004}
        work = partial(train_rank, values)
        drawn.append([work(0)] if ranks == 1 else run_ranks(ranks, work, tmp_path, timeout_s=60))
        first.append(comparable(tmp_path / name))
    assert sorted([*drawn[1][0], *drawn[1][1]]) == sorted(drawn[0][0]) and len(drawn[0][0]) == 4
    for one, two in zip(*first, strict=True):
        for name in ("loss/total", "gradient_norm/backbone"):
            assert abs(one[name] - two[name]) <= 1e-6 * max(1, abs(one[name])), name


def test_the_loss_falls_below_what_is_known_without_a_class(values_of, tmp_path) -> None:
    """Each class has 3 codes of its own: ln 3 is the least there can be, ln 9 is what the codes alone are worth."""
    changes = {
        "training.total_kimg": 1.6,
        "training.kimg_per_tick": 0.4,
        "training.batch_size": 8,
        "optimizer.lr": 1e-2,
        "network.class_dropout_prob": 0.1,
        "checkpoint.network_snapshot_ticks": 100,
    }
    run_until(trainer_of(values_of("tokens"), **changes))
    losses = [line["loss/total"] for line in read_log(tmp_path / "run" / "log.jsonl")]
    assert losses[0] == pytest.approx(math.log(CODES), abs=1e-3)
    assert losses[-1] < 1.35 and losses == sorted(losses, reverse=True)


@sources
def test_a_run_goes_on_from_another_and_from_a_file_of_the_reference(source, values_of, tmp_path) -> None:
    first = run_until(trainer_of(values_of(source, "first")))
    options = {"training.init_from": str(tmp_path / "first"), "training.init_kimg": 0.024, "training.total_kimg": 0.028}
    second = trainer_of(values_of(source, "second"), **options, **{"training.init_optimizer": True})
    second._start()
    assert second.nimg == 24 and second.step == 0
    assert_same(state_of(second), state_of(first))
    second.run()
    system, path = first.system, tmp_path / "reference.pt"
    torch.save({"model": system.network.state_dict(), "ema": system.average.state_dict()}, path)
    third = trainer_of(values_of(source, "third"), **{"training.init_from": str(path)})
    third._start()
    expected = {name: value for name, value in state_of(first).items() if not name.startswith("optimizer")}
    assert_same(state_of(third), expected)
    assert third.origin.source == "reference.pt"


def test_what_a_run_cannot_start_from_is_refused(values_of, tiny_tokenizer, tmp_path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "reference.pt")
    for path, message in (
        (tmp_path, "no complete checkpoint here"),
        (tiny_tokenizer, "found a checkpoint of vfm_vae, expected one of an autoregressive model"),
        (tmp_path / "reference.pt", r"missing, e\.g\. cls_embedding.*; 1 unexpected, e\.g\. a"),
    ):
        with pytest.raises(CheckpointError, match=message):
            trainer_of(values_of("tokens"), **{"training.init_from": str(path)}).run()


def test_a_checkpoint_says_whose_tokens_it_generates(values_of, tmp_path) -> None:
    trainer = run_until(trainer_of(values_of("images")), 1)
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    model = json.loads((folder / "config.json").read_text())
    assert (model["model_type"], model["network"]["dim"]) == ("gpt_c2i", 16)
    assert model["tokens"] == {"codes": 12, "grid": [4, 4], "tokenizer_sha256": trainer.system.kind.tokenizer_sha256}
    network = trainer.system.build_network(trainer.config)
    load_gpt_weights(network, tmp_path / "run", "raw")
    assert_same(network.state_dict(), trainer.system.network.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network.vocab_size": 16},
            r"index.json: its tokens are of a codebook of 12 codes, but network.vocab_size .* is 16; set it to 12",
        ),
        ({"network.block_size": 25}, r"index.json: has 4 x 4 tokens per image, but network.block_size .* is 25"),
        ({"network.num_classes": 2}, r"found the label 2 \(3 of 10 are no class\), but network.num_classes is 2"),
    ],
)
def test_tokens_that_do_not_fit_the_network_are_refused(changes, message, values_of) -> None:
    with pytest.raises(DataError, match=message):
        trainer_of(values_of("tokens"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network.vocab_size": 16}, r"discrete: its tokens are of a codebook of 12 codes, but network.vocab_size"),
        ({"data.resolution": 64}, r"discrete: has 8 x 8 tokens per image, but network.block_size .* is 16"),
        ({"network.num_classes": 1}, r"found the label \d, but network.num_classes is 1: expected labels from 0 to 0"),
    ],
)
def test_a_tokenizer_and_images_that_do_not_fit_the_network_are_refused(changes, message, values_of) -> None:
    with pytest.raises(DataError, match=message):
        trainer_of(values_of("images"), **changes).run()


def test_tokenizers_without_a_single_codebook_are_refused(values_of, tiny_encoder, tiny_tokenizer, tmp_path) -> None:
    two = write_discrete_tokenizer(tmp_path / "two", tiny_encoder, **{"latent.num_codebooks": 2})
    for path, message in ((two, "has 2 codebooks, so 2 tokens"), (tiny_tokenizer, "its latent is continuous")):
        with pytest.raises(UserError, match=message):
            trainer_of(values_of("images"), **{"tokenizer.vae_pth": str(path)})


def test_a_token_out_of_range_ends_the_run_with_its_place(tmp_path) -> None:
    tokens = torch.zeros(10, 2, 16, dtype=torch.int64)
    tokens[7, :, 3] = 12
    folder = write_tokens(tmp_path / "tokens", tokens)
    message = r"tokens_rank00_shard001\.safetensors: tokens: row 1, view \d: found the token 12, expected 0 to 11"
    with pytest.raises(DataError, match=message):
        run_until(trainer_of(run_values(folder, tmp_path / "run")))


def test_folders_that_are_no_tokens_are_refused(tmp_path, tokens) -> None:
    folder = write_tokens(tmp_path / "tokens")
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match=r"index\.json: missing; it says whose tokens these are"):
        TokenFolder(folder)
    with pytest.raises(DataError, match="does not say whose tokens these are"):
        TokenFolder(write_tokens(tmp_path / "tokens", codes=None))
    with pytest.raises(DataError, match=r"found 16 per image, expected 25, a grid of 5 x 5, as index\.json"):
        TokenFolder(write_tokens(tmp_path / "tokens", grid=[5, 5]))


def test_a_run_is_not_resumed_with_other_tokens_or_another_tokenizer(values_of, tiny_encoder, tmp_path) -> None:
    values = values_of("tokens")
    run_until(trainer_of(values), 2)
    moved = write_tokens(tmp_path / "moved")
    assert run_until(trainer_of(values, **{"data.path": str(moved), "sample.cfg_scale": 3.0}), 3).step == 3
    write_tokens(moved, tokenizer_sha256="b" * 64)
    with pytest.raises(CheckpointError, match=r"data.path holds other shards or samples"):
        trainer_of(values, **{"data.path": str(moved)}).run()
    values = values_of("images", "on images")
    run_until(trainer_of(values), 2)
    other = write_discrete_tokenizer(tmp_path / "other", tiny_encoder, **{"encoder.scale_factor": 1.0})
    with pytest.raises(CheckpointError, match=r"was trained on tokens of .* but those of this run are"):
        trainer_of(values, **{"tokenizer.vae_pth": str(other)}).run()


@pytest.mark.parametrize(
    ("source", "changes", "messages"),
    [
        (
            "tokens",
            {"tokenizer.vae_pth": "x", "network.n_head": 3},
            ("tokenizer.vae_pth: names a tokenizer, but data.source: tokens reads", "network.dim: 16 cannot be shared"),
        ),
        (
            "images",
            {"tokenizer.vae_pth": None, "data.xflip": True},
            ("tokenizer.vae_pth: missing, but data.source: images needs", "data.xflip is an option of image folders"),
        ),
    ],
)
def test_relations_between_sections_are_reported(source, changes, messages, values_of) -> None:
    with pytest.raises(ConfigError) as error:
        trainer_of(values_of(source), **changes)
    assert all(message in str(error.value) for message in messages), error.value
