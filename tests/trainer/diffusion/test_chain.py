"""From photographs to samples through the commands: prefetch, train, sample, decode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from data.latents import read_normalisation
from tests.tiny import write_config
from tests.trainer.diffusion.tiny_runs import tiny_values

SAMPLE = {"lightningdit": {"num_sampling_steps": 4, "cfg_scale": 2.0}, "reg": {"num_steps": 4, "cfg_scale": 2.0}}


def samples_in(folder: Path) -> dict[str, torch.Tensor]:
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([file[name] for file in files]) for name in ("latents", "labels")}


@pytest.mark.parametrize("system", ["lightningdit", "reg"])
def test_photographs_become_samples(system, command, tiny_data, tiny_tokenizer, target, tmp_path, capsys) -> None:
    tools, latents = f"tools/preprocess_for_{system}", tmp_path / "latents"
    on_cpu = ("--device", "cpu", "--batch-size-per-gpu", 4)
    more = ("--format", "safetensors") if system == "reg" else ()
    encode = ("--data-path", tiny_data, "--output-dir", latents, "--vae-pth", tiny_tokenizer)
    assert command(f"{tools}/prefetch.py", *encode, *on_cpu, *more) == 0

    values = tiny_values(system, latents, tmp_path / "run", target)
    values["network"]["input_size"] = 8
    values["sample"] = SAMPLE[system]
    config = write_config(values, tmp_path / "run.yaml")
    assert command(f"{tools}/train.py", "--config", config, "--set", "training.total_kimg=0.008") == 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()][-1].startswith("checkpoint-")

    sampled = []
    for name, batch in (("a", 2), ("b", 5)):
        request = ("--num-samples", 5, "--labels", "balanced", "--seed", 1, "--samples-per-shard", 3)
        where = ("--checkpoint", tmp_path / "run", "--output-dir", tmp_path / name)
        assert command(f"{tools}/sample.py", *where, *request, "--device", "cpu", "--batch-size-per-gpu", batch) == 0
        sampled.append(samples_in(tmp_path / name))
    torch.testing.assert_close(sampled[0]["latents"], sampled[1]["latents"], atol=1e-5, rtol=0)
    assert sampled[0]["labels"].tolist() == [0, 1, 2, 0, 1] and sampled[0]["labels"].dtype == torch.int32
    assert sampled[0]["latents"].shape == (5, 4, 8, 8)
    x = read_normalisation(latents, 4).normalise(sampled[0]["latents"])
    assert 0.3 < x.std() < 3  # the statistics of the checkpoint are those of the folder
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["status"] == "complete"

    decode = ("--input-dir", tmp_path / "a", "--output-dir", tmp_path / "images", "--vae-pth", tiny_tokenizer)
    assert command("tools/decode/decode_latents_to_images.py", *decode, *on_cpu) == 0
    images = sorted((tmp_path / "images").glob("*.png"))
    assert [np.asarray(Image.open(path)).shape for path in images] == [(64, 64, 3)] * 5

    other = ("--output-dir", tmp_path / "a", "--num-samples", 6, "--device", "cpu")
    assert command(f"{tools}/sample.py", "--checkpoint", tmp_path / "run", *other) == 2
    assert "request: found" in capsys.readouterr().err


def test_what_cannot_be_sampled_is_refused(command, latents, target, tiny_tokenizer, tmp_path, capsys) -> None:
    values = tiny_values("lightningdit", latents["lightningdit"], tmp_path / "run", target)
    config = write_config(values, tmp_path / "run.yaml")
    tool, to = "tools/preprocess_for_lightningdit/sample.py", ("--output-dir", tmp_path / "out", "--device", "cpu")
    assert command("train.py", "--config", config, "--set", "training.total_kimg=0.004") == 0
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    with safe_open(folder / "model.safetensors", "pt") as file:
        reference = {"ema": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  (no mapping)
    torch.save(reference, tmp_path / "0000001.pt")
    capsys.readouterr()
    for arguments, message in (
        (("--checkpoint", tmp_path / "0000001.pt"), "a file carries no configuration, give --config"),
        (("--checkpoint", tmp_path / "0000001.pt", "--config", config), "--latents-stats-dir: missing"),
        (("--checkpoint", tmp_path), "no complete checkpoint here"),
        (("--checkpoint", tiny_tokenizer), "found a checkpoint of vfm_vae, expected one of a diffusion model"),
        (("--checkpoint", tmp_path / "run", "--set", "sample.cfg_scal=4"), "unknown key. Closest: cfg_scale."),
        (("--checkpoint", tmp_path / "run", "--classes", "3"), "classes: found 3, expected numbers from 0 to 2"),
        (("--checkpoint", tmp_path / "run", "--num-samples", 0), "--num-samples: found 0, expected at least 1"),
    ):
        assert command(tool, *arguments, *to) == 2, arguments
        assert message in capsys.readouterr().err, arguments
    reg = ("tools/preprocess_for_reg/sample.py", "--checkpoint", tmp_path / "run")
    assert command(*reg, *to) == 2
    assert "system: found lightningdit, expected reg." in capsys.readouterr().err
    few = ("--num-samples", 2, "--set", "sample={num_sampling_steps: 2, cfg_scale: 1.0}")
    stats = ("--config", config, "--latents-stats-dir", latents["lightningdit"])
    assert command(tool, "--checkpoint", tmp_path / "0000001.pt", *stats, *few, *to) == 0
    own = ("--output-dir", tmp_path / "own", "--device", "cpu")
    assert command(tool, "--checkpoint", tmp_path / "run", *few, *own) == 0
    assert torch.equal(samples_in(tmp_path / "out")["latents"], samples_in(tmp_path / "own")["latents"])
    decoding = ("--input-dir", tmp_path / "own", "--output-dir", tmp_path / "x", "--vae-pth", tmp_path / "run")
    assert command("tools/decode/decode_latents_to_images.py", *decoding, "--device", "cpu") == 2
    assert "found a checkpoint of lightningdit, expected one of a tokenizer" in capsys.readouterr().err
