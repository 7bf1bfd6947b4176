"""The benchmark of every system: what is timed, what follows from it, and the picture of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from common.config import Source
from configs.schema import check
from tests.networks.tiny_encoders import TINY as TINY_ENCODERS
from tests.tiny import tiny_values, tiny_vfmtok_values
from tests.trainer.ar.tiny_runs import run_values
from tests.trainer.conftest import merged
from tests.trainer.diffusion.tiny_runs import tiny_values as diffusion_values
from trainer.benchmark import as_plot, as_record, as_table, measure
from trainer.benchmarks import pipelines

CPU = torch.device("cpu")


def record_of(values: dict[str, Any], repeats: int = 1, **options: Any) -> dict[str, Any]:
    config = check(Source("tiny.yaml", values)).config
    return as_record(measure(config, CPU, 2, repeats, gemm_side=64, **options), config, CPU)


def gflop(record: dict[str, Any]) -> dict[str, float]:
    return {name: part["gflop"] for name, part in record["parts"].items() if part is not None}


def test_vfmtok_is_timed_by_its_parts_and_both_phases(tiny_encoder, tmp_path):
    values = tiny_vfmtok_values(tiny_encoder, tmp_path, tmp_path)
    values["discriminator"] = {
        "use_stylegan_t_discriminator": True,
        "backbone": "random_tiny",
        "projected_kind": "vfmtok",
        "diffaug": False,
    }
    values["losses"]["vfmtok_gan"] = {"weight": 0.5, "start_kimg": 10}
    record = record_of(values, repeats=2)
    attention = ["deformable_attention", "deformable_sampling", "grid_sample"]
    inference = ["encoder", "region_encoder", "encode", "decode", "semantic_pass", *attention]
    assert list(record["parts"]) == [*inference, "generator", "discriminator", "step"]
    assert record["setting"]["phases"] == ["generator", "discriminator"]
    assert record["left_out"]["losses.vfmtok_gan.start_kimg"] == "every step runs as after it"
    found = gflop(record)
    codes = 2 * 2 * 16 * 6 * (32 + 48) / 1e9  # 16 tokens of 2 images to codes of width 6, compared with all 48
    assert found["encode"] == pytest.approx(found["encoder"] + found["region_encoder"] + codes)
    assert found["step"] == pytest.approx(found["generator"] + found["discriminator"])
    assert found["discriminator"] > 0 and found["grid_sample"] == found["deformable_sampling"] == 0
    fastest = {name: min(record["parts"][name]["runs"]) for name in attention}
    for name in attention[:2]:
        figure = record["figures"][f"{name}_over_grid_sample"]
        assert figure["value"] == fastest[name] / fastest["grid_sample"] and figure["unit"] == "times"
    assert "its phases: generator and discriminator." in as_table(record)


def test_sampling_with_a_cache_is_compared_with_passes_of_the_whole_sequence(tmp_path):
    record = record_of(merged(run_values(tmp_path, tmp_path), {"sample.cfg_interval": 1}), repeats=2)
    assert list(record["parts"]) == ["sample", "sample_half", "recompute", "step"]
    assert record["encoder_weights"] == "none" and "encoder" not in as_table(record)
    # 3 guided tokens of 4 sequences, then 13 of 2: 6,848 weights and, in 2 layers, attention of width 16 to 16 places.
    rows = 3 * 4 + 13 * 2
    assert gflop(record)["sample"] == pytest.approx(rows * 2 * (6848 + 2 * 2 * 16 * 16) / 1e9)
    # Passes of 2, 6, 10 and 14 tokens stand for all 16, the first of them guided; attention counts as if not causal.
    passes = sum(rows * n * 2 * (6848 + 2 * 2 * 16 * n) for rows, n in ((4, 2), (2, 6), (2, 10), (2, 14)))
    assert gflop(record)["recompute"] == pytest.approx(16 / 4 * passes / 1e9)
    seconds = {name: min(part["runs"]) for name, part in record["parts"].items()}
    assert {name: figure["value"] for name, figure in record["figures"].items()} == {
        "seconds_per_token": seconds["sample"] / 16,
        "seconds_per_token_of_half": seconds["sample_half"] / 8,
        "recompute_over_sample": seconds["recompute"] / seconds["sample"],
        "sample_over_sample_half": seconds["sample"] / seconds["sample_half"],
    }


def test_a_step_that_the_guard_refuses_is_told(tmp_path, monkeypatch):
    values = run_values(tmp_path, tmp_path)
    assert "optimiser" not in record_of(values)["left_out"]
    monkeypatch.setattr("trainer.guard.Guard.accepts", lambda *arguments: False)
    assert "the guard refused the step" in record_of(values)["left_out"]["optimiser"]


def test_a_compiled_step_counts_as_the_plain_one(tmp_path, monkeypatch):
    values = run_values(tmp_path, tmp_path)
    plain = gflop(record_of(values))
    monkeypatch.setattr("evaluation.ar.samples.compiled_step", lambda network: network.step)
    assert gflop(record_of(merged(values, {"sample.compile": True}))) == plain


@pytest.mark.parametrize("system", ["lightningdit", "reg"])
def test_a_guided_velocity_of_a_diffusion_model_is_two_passes_and_a_step_three(system, tmp_path):
    values = diffusion_values(system, tmp_path, tmp_path, tmp_path / "dinov2-not-here")
    guided = gflop(record_of(merged(values, {"sample.cfg_scale": 2.0})))
    plain = gflop(record_of(merged(values, {"sample.cfg_scale": 1.0})))
    assert list(plain) == ["forward", "step"]
    assert guided["forward"] == 2 * plain["forward"] and guided["step"] == plain["step"]
    assert 2.5 * plain["forward"] < plain["step"] < 4 * plain["forward"]  # inputs have no gradient; REG has projectors


def test_target_encoders_of_reg_are_loaded_or_random_or_stood_for(tmp_path):
    folder = tmp_path / "dinov2"
    TINY_ENCODERS["dinov2"].save(folder)
    values = diffusion_values("reg", tmp_path, tmp_path, folder)
    loaded = record_of(values)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    random = record_of(values)
    unknown = record_of(merged(values, {"target.vfm_names": [str(tmp_path / "dinov2-not-here")]}))
    found = [record["encoder_weights"] for record in (loaded, random, unknown)]
    assert found == ["pretrained", "random", "unknown"]
    assert random["left_out"]["weights of the target encoders"] == "out of reach; random ones cost the same"
    assert "target encoders" in unknown["left_out"]
    assert gflop(random) == gflop(loaded)
    assert gflop(unknown)["step"] < gflop(loaded)["step"]


@pytest.mark.parametrize("tokenizer", [tiny_values, tiny_vfmtok_values])
def test_pipelines_are_compared_with_the_work_alone(tokenizer, tiny_encoder, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "LOADED_IMAGES", 8)
    monkeypatch.setattr(pipelines, "MADE_UP_IMAGES", 4)
    monkeypatch.setattr(pipelines, "NETWORK_SECONDS", 0.0)
    monkeypatch.setattr(pipelines, "FEWEST_BATCHES", 1)
    data = tiny_data if tokenizer is tiny_values else tmp_path / "no data"
    record = record_of(tokenizer(tiny_encoder, data, tmp_path), pipelines=True)
    rates = {name: pipeline["images_per_second"] for name, pipeline in record["pipelines"].items()}
    triples = [[name, f"bare_{name}", f"{name}_files"] for name in ("prefetch", "reconstruct")]
    assert list(rates) == ["input", "pil", *itertools.chain(*triples)] and min(rates.values()) > 0
    assert record["figures"]["input_over_pil"]["value"] == rates["input"] / rates["pil"]
    for name, bare, files in triples:
        assert record["figures"][f"{name}_over_{bare}"]["value"] == rates[name] / rates[bare]
        in_a_row = 1 / (1 / rates[bare] + 1 / rates[files])
        assert record["figures"][f"{name}_over_its_parts"]["value"] == pytest.approx(rates[name] / in_a_row)
    assert "images/s" in as_table(record)


def test_the_plot_shows_each_part_and_its_matrix_products(tmp_path):
    record = record_of(run_values(tmp_path, tmp_path))
    plot = as_plot(record)
    assert all(f">{name}</text>" in plot for name in record["parts"])
    assert "gpt_c2i: 2 sequences of 16 tokens of 12 codes" in plot and "GFLOP/s" in plot
