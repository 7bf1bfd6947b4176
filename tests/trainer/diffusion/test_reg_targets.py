"""REG's target encoders: always the same ones, run in the training or beforehand."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import CheckpointError, DataError, UserError
from networks.encoders.dinov2 import DINOv2Encoder
from tests.networks.tiny_encoders import TINY
from tests.tiny import write_config
from tests.trainer.conftest import comparable, run_until, state_of
from tests.trainer.diffusion.tiny_runs import trainer_of, write_latents

ROOT = Path(__file__).parents[3]
SCRIPT = "tools/preprocess_for_reg/prefetch_features.py"


@pytest.fixture
def prefetch(values_of, tmp_path, monkeypatch):
    """Run the tool on the tiny latents, two items in a file; returns its exit code."""
    monkeypatch.setattr("evaluation.diffusion.target_tokens.ITEMS_PER_FILE", 4)
    config = write_config(values_of("reg"), tmp_path / "reg.yaml")

    def run(folder: Path, *arguments: str) -> int:
        where = ["--config", str(config), "--output-dir", str(folder), "--device", "cpu", "--batch-size-per-gpu", "3"]
        monkeypatch.setattr(sys, "argv", [SCRIPT, *where, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / SCRIPT), run_name="__main__")
        return end.value.code or 0

    return run


def test_a_run_with_features_from_disk_equals_one_that_computes_them(prefetch, values_of, tmp_path) -> None:
    """Also a run that goes over from one to the other; neither encoder nor images are read then."""
    assert prefetch(tmp_path / "tokens", "--dtype", "float32") == 0
    online = run_until(trainer_of(values_of("reg", "online")))
    from_disk = {"data.features_path": str(tmp_path / "tokens"), "target.vfm_names": ["facebook/dinov2-base"]}
    run_until(trainer_of(values_of("reg", "disk")), 3)
    disk = run_until(trainer_of(values_of("reg", "disk"), **from_disk))
    assert disk.system.targets is None
    one, two = state_of(online), state_of(disk)
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    for a, b in zip(comparable(tmp_path / "online"), comparable(tmp_path / "disk"), strict=True):
        assert b["loss/proj"] == pytest.approx(a["loss/proj"], abs=1e-6)


def test_an_interrupted_prefetch_is_completed_with_the_same_files(prefetch, tmp_path, capsys) -> None:
    folder = tmp_path / "tokens"
    assert prefetch(folder) == 0
    assert "tokens of 10 images" in capsys.readouterr().out
    whole = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert sorted(whole) == [f"tokens_00000000{first}.safetensors" for first in (0, 4, 8)]
    (tokens,) = load_file(folder / "tokens_000000008.safetensors").values()
    assert tokens.shape == (2, 17, 32) and tokens.dtype == torch.float16
    (folder / "tokens_000000004.safetensors").unlink()
    assert prefetch(folder) == 0
    assert "tokens of 4 images, 6 were there already" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == whole
    assert prefetch(folder, "--dtype", "float32") == 2
    assert "dtype: found float16, expected float32; choose an empty --output-dir" in capsys.readouterr().err


def test_tokens_that_are_not_finite_stop_the_prefetch_and_name_their_image(prefetch, monkeypatch, tmp_path, capsys):
    """Half precision ends at 65504; bfloat16 does not."""
    normalise = DINOv2Encoder.normalise
    monkeypatch.setattr(DINOv2Encoder, "normalise", lambda self, state: 1e5 * normalise(self, state))
    assert prefetch(tmp_path / "tokens") == 2
    assert re.search(r"error: 0/0_0: tokens of target encoder 0 hold .* --dtype is too narrow", capsys.readouterr().err)
    assert prefetch(tmp_path / "wide", "--dtype", "bfloat16") == 0
    assert load_file(tmp_path / "wide" / "tokens_000000000.safetensors")["tokens_0"].dtype == torch.bfloat16


def test_features_that_do_not_fit_are_refused(prefetch, values_of, target, tmp_path) -> None:
    folder = tmp_path / "tokens"
    assert prefetch(folder) == 0
    values, path = values_of("reg"), {"data.features_path": str(folder)}
    with pytest.raises(UserError, match=r"z_dims: found \[24\], but the target encoders have \[32\] channels"):
        trainer_of(values, **path, **{"network.z_dims": [24]})
    renamed = write_latents(tmp_path / "renamed", "reg")
    shutil.copy(renamed / "latents_rank00_shard001.safetensors", renamed / "latents_rank00_shard002.safetensors")
    with pytest.raises(DataError, match=r"these tokens are of 10 other items than the 14 latents"):
        trainer_of(values, **path, **{"data.path": str(renamed)})
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    with pytest.raises(DataError, match="the prefetch into this folder has not ended"):
        trainer_of(values, **path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run_until(trainer_of(values, **path), 1)
    manifest["target_encoders"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="started with other target encoders"):
        trainer_of(values, **path).run()
    (folder / "tokens_000000004.safetensors").unlink()
    with pytest.raises(DataError, match="found 6 rows, expected 10; a file is missing"):
        trainer_of(values, **path)


def test_other_target_encoders_are_refused(values_of, tmp_path) -> None:
    values = values_of("reg")
    run_until(trainer_of(values), 1)
    TINY["dinov2 with registers"].save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="started with other target encoders"):
        trainer_of(values, **{"target.vfm_names": [str(tmp_path / "other")]}).run()
    with pytest.raises(UserError, match=r"z_dims: found \[24\], but the target encoders have \[32\] channels"):
        trainer_of(values, **{"network.z_dims": [24]})
