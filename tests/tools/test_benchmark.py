"""The benchmark: what it reports, what it counts, and that nothing is left out in silence."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import CheckpointError, UserError
from configs.schema import load_config
from configs.vfm_vae import VFMVAEExperiment
from evaluation.cost import count_flops
from networks.discriminators.backbone import empty_backbone
from tests.tiny import tiny_values, write_config
from trainer.benchmark import as_record, as_table, measure
from trainer.dry_run import discriminator_cost

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PARTS = ["encoder", "adapter", "encode", "decode", "discriminator", "generator", "step"]
ADVERSARIAL = {
    "discriminator": {
        "use_stylegan_t_discriminator": True,
        "backbone": "random_tiny",
        "use_patchgan_discriminator": True,
        "get_interm_feat": True,
    },
    "losses": {
        "l1_pixel": {"weight": 1.0},
        "stylegan_t": {"weight": 1.0},
        "patchgan": {"weight": 1.0, "use_disc_warmup": True},
        "feature_matching": {"weight": 10.0},
    },
}


def small_values(encoder: Path, folder: Path) -> dict:
    """The tiny configuration without data and with two decoder blocks, for counting takes time per operation."""
    values = tiny_values(encoder, folder / "no data", folder / "run")
    values["decoder"] |= {
        "num_blocks": 2,
        "concat_z_block_indices": [0],
        "concat_z_mapped_dims": [64],
        "attn_block_indices": [0],
        "attn_depths": [1],
        "add_additional_convnext": False,
    }
    values["losses"]["multiscale_pixel"] = {"weights": {32: 0.1}}
    return values


@pytest.fixture(scope="module")
def counts(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """GFLOP of each part of the small configuration."""
    folder = tmp_path_factory.mktemp("counts")
    return gflop(run(small_values(tiny_encoder, folder), folder))


@pytest.fixture
def values(tiny_encoder: Path, tmp_path: Path) -> dict:
    return small_values(tiny_encoder, tmp_path)


def load(values: dict, tmp_path: Path, *overrides: str) -> VFMVAEExperiment:
    return load_config(write_config(values, tmp_path / "config.yaml"), overrides).config


def run(values: dict, tmp_path: Path, *overrides: str, batch_size: int = 2) -> dict:
    config = load(values, tmp_path, *overrides)
    return as_record(measure(config, CPU, batch_size, repeats=1, gemm_side=128), config, CPU)


def gflop(record: dict) -> dict[str, float]:
    return {name: part["gflop"] for name, part in record["parts"].items() if part is not None}


def test_the_command_prints_one_json_object(values, counts, tmp_path, monkeypatch, capsys):
    config = write_config(values, tmp_path / "config.yaml")
    command = ["benchmark.py", "--config", str(config), "--json", "--gemm-side", "128"]
    command += ["--batch-size", "3", "--repeats", "2", "--threads", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(ROOT / "tools" / "benchmark.py"))["main"]()
    record = json.loads(capsys.readouterr().out)
    assert set(record) == {
        "absent",
        "config_sha256",
        "encoder_weights",
        "figures",
        "gemm",
        "left_out",
        "machine",
        "parts",
        "pipelines",
        "setting",
        "system",
        "versions",
    }
    assert list(record["parts"]) == PARTS
    assert record["machine"]["threads"] == 1
    assert record["setting"]["batch_size"] == 3
    assert record["encoder_weights"] == "pretrained"
    assert record["gemm"]["side"] == 128 and record["gemm"]["runs"] == 5
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert gflop(record) == pytest.approx({name: 1.5 * count for name, count in counts.items()})  # 3 images, not 2
    speed = record["gemm"]["gflop_per_second"]
    assert record["setting"]["phases"] == ["generator"] and record["parts"].pop("discriminator") is None
    for part in record["parts"].values():
        assert len(part["runs"]) == 2
        assert part["seconds"] == pytest.approx(sum(part["runs"]) / 2)
        assert part["cost"] == pytest.approx(part["seconds"] * speed)
        assert part["gemm_share"] == pytest.approx(part["gflop"] / part["cost"])
        assert 0 < part["peak_memory_gb"] < 100


def test_flops_are_positive_and_add_up(counts):
    assert min(counts.values()) > 0
    assert counts["encode"] == pytest.approx(counts["encoder"] + counts["adapter"], rel=1e-12)
    forward = counts["encode"] + counts["decode"]
    trained = counts["adapter"] + counts["decode"]
    assert forward + trained < counts["step"] < forward + 3 * trained


def test_flops_do_not_depend_on_precision_or_layout(values, counts, tmp_path):
    record = run(values, tmp_path, "training.precision=bf16", "training.channels_last=true")
    assert gflop(record) == counts


def test_what_is_not_built_or_absent_is_left_out_by_name(values, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    values["losses"] |= {"perceptual": {"weight": 10.0}}
    values["training"]["precision"] = "fp16"
    record = run(values, tmp_path)
    assert set(record["left_out"]) == {"data", "LPIPS weights", "equivariance", "fp16"}
    assert record["left_out"]["LPIPS weights"] == "out of reach; random ones cost the same"
    assert record["setting"]["losses"] == ["l1_pixel", "l2_pixel", "multiscale_pixel", "perceptual", "kl", "vf"]
    assert record["setting"]["precision"] == "fp32"
    table = as_table(record)
    assert all(f"  {name}: {reason}" in table for name, reason in record["left_out"].items())


def test_an_encoder_without_weights_is_random_and_costs_the_same(values, counts, tmp_path):
    folder = tmp_path / "siglip2-config-only"
    folder.mkdir()
    shutil.copy(Path(values["encoder"]["vfm_name"]) / "config.json", folder)
    values["encoder"]["vfm_name"] = str(folder)
    record = run(values, tmp_path)
    assert record["encoder_weights"] == "random"
    assert "encoder weights" in record["left_out"]
    assert gflop(record) == counts


def test_an_encoder_out_of_reach_is_unknown_and_the_rest_is_measured(values, counts, tmp_path):
    values["encoder"]["vfm_name"] = str(tmp_path / "siglip2-patch8-not-here")
    record = run(values, tmp_path)
    assert record["encoder_weights"] == "unknown"
    assert record["parts"]["encoder"] is None and record["parts"]["encode"] is None
    assert gflop(record)["decode"] == counts["decode"]
    assert gflop(record)["step"] == pytest.approx(counts["step"] - counts["encoder"])
    assert "unknown" in as_table(record)


def test_the_phase_of_the_discriminators_is_timed_and_is_part_of_the_step(values, counts, tmp_path):
    record = run(values | ADVERSARIAL, tmp_path, batch_size=1)
    assert record["setting"]["phases"] == ["discriminator", "generator"]
    assert record["left_out"]["warm-up"] == "every step runs as after it, with all discriminators"
    found = gflop(record)
    plain = gflop(run(values | {"losses": {"l1_pixel": {"weight": 1.0}}}, tmp_path, batch_size=1))
    config = load(values | ADVERSARIAL, tmp_path)
    estimate = discriminator_cost(config, 1).flops / 1e9
    for_them = plain["encode"] + plain["decode"] + estimate  # a pass of the tokenizer, and what they compute
    assert plain["encode"] + plain["decode"] < found["discriminator"] < for_them
    # In the step the frozen encoder runs once. The CPU's attention computes its weights again in the backward pass,
    # which the estimate does not know.
    assert found["step"] == pytest.approx(plain["step"] + for_them - plain["encoder"], rel=1e-3)
    table = as_table(record)
    assert "its phases: discriminator and generator." in table


def test_a_backbone_whose_file_is_not_here_is_random_and_a_wrong_file_an_error(values, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        "trainer.benchmarks.tokenizer.bare_backbone", lambda config: empty_backbone("random_tiny")
    )  # a fast one
    values["losses"] = {"stylegan_t": {"weight": 1.0}}
    values["discriminator"] = {"use_stylegan_t_discriminator": True}
    record = run(values, tmp_path)
    assert record["left_out"]["discriminator weights"] == "out of reach; random ones cost the same"
    assert gflop(record)["discriminator"] > 0
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "dino.pth")
    with pytest.raises(CheckpointError, match=r"dino\.pth: not the weights of DINO"):
        run(values, tmp_path, f"discriminator.dino_path={tmp_path / 'dino.pth'}")


def test_a_step_without_computable_losses_is_left_out(values, tmp_path):
    values["losses"] = {"clip": {"weight": 1.0}}
    values["data"]["label_type"] = "text"
    record = run(values, tmp_path)
    assert record["parts"]["step"] is None
    assert record["left_out"]["step"] == "none of its losses can be computed here"
    assert gflop(record)["decode"] > 0


def test_wrong_layer_widths_are_an_error_and_no_reason_for_random_weights(values, tmp_path):
    values["encoder"]["patch_in_dimensions"] = [32, 64, 32]
    with pytest.raises(UserError, match=r"patch_in_dimensions: found \[32, 64, 32\], but .* \[32, 32, 32\]"):
        run(values, tmp_path)


def test_a_batch_that_cannot_fit_is_refused_before_it_is_tried(values, tmp_path):
    with pytest.raises(UserError, match=r"batch size 100000000: .* GB of memory; use a smaller --batch-size"):
        run(values, tmp_path, batch_size=100_000_000)


def test_attention_and_grouped_convolutions_are_counted_in_both_directions():
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    for convolution, weights in (
        (nn.Conv2d(8, 12, 3, padding=1), 8 * 12 * 9),
        (nn.Conv2d(8, 8, 7, padding=3, groups=8), 8 * 49),
        (nn.ConvTranspose2d(8, 12, 2, stride=2), 8 * 12 * 4),
    ):
        forward = 2 * 2 * 16 * 16 * weights
        assert count_flops(lambda c=convolution: c(x)) == forward
        assert count_flops(lambda c=convolution: c(x).sum().backward()) == 3 * forward
    q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for n in (64, 65, 65))
    attention = nn.functional.scaled_dot_product_attention
    forward = 2 * 2 * 2 * 64 * 65 * 16  # two products, two heads
    assert count_flops(lambda: attention(q, k, v)) == forward
    assert count_flops(lambda: attention(q, k, v).sum().backward()) >= 3 * forward
