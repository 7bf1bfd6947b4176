"""From photographs to generation metrics and an alignment report, through the commands, without a network.

The tokenizer is the quick start's, trained for one step: every tool gets what the tool before it left.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from common.similarity import psnr
from data.listing import list_files
from tests.faults.warm import Run

ROOT = Path(__file__).parents[2]
HELD_OUT = 8
FRECHET = "efficientnet_lite0_frechet_distance"


@pytest.fixture(scope="module")
def command() -> Iterator[Callable[..., None]]:
    """Run a script of tools/ in this process, as Python would start it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)

        def run(script: str, *arguments: str | Path) -> None:
            path = ROOT / "tools" / script
            with pytest.MonkeyPatch.context() as call:
                call.setattr(sys, "argv", [str(path), *map(str, arguments)])
                call.syspath_prepend(str(path.parent))
                assert runpy.run_path(str(path))["main"]() in (None, 0), script

        yield run


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def photographs(command, home) -> Path:
    counts = ["--count", 32, "--shard-size", 16, "--held-out-count", HELD_OUT]
    command("quickstart/photographs.py", "--output-dir", home / "photographs", *counts)
    return home / "photographs"


@pytest.fixture(scope="module")
def checkpoint(photographs, home) -> Path:
    """The run folder of the quick start after one step of four images."""
    config = {
        "base": str(ROOT / "configs" / "quickstart.yaml"),
        "run": {"run_dir": str(home / "run")},
        "data": {"path": str(photographs / "shards")},
        "training": {"batch_size": 4, "total_kimg": 0.004},
    }
    (home / "quickstart.yaml").write_text(yaml.safe_dump(config))
    training = Run(home / "quickstart.yaml")
    assert training.wait() == [0], training.text()
    return home / "run"


@pytest.fixture(scope="module")
def reconstructions(command, photographs, checkpoint, home) -> Path:
    files = ["--input-dir", photographs / "heldout", "--output-dir", home / "images", "--vae-pth", checkpoint]
    command("reconstruct/reconstruct.py", *files, "--batch-size-per-gpu", 4)
    return home / "images"


@pytest.fixture(scope="module")
def latents(command, photographs, checkpoint, home) -> Path:
    files = ["--data-path", photographs / "shards", "--output-dir", home / "latents", "--vae-pth", checkpoint]
    command("preprocess_for_lightningdit/prefetch.py", *files, "--resolution", 64, "--batch-size-per-gpu", 8)
    return home / "latents"


@pytest.fixture(scope="module")
def decoded(command, latents, checkpoint, home) -> Path:
    """What a perfect generator would give the decode tools: the latents of the photographs themselves."""
    files = ["--input-dir", latents, "--output-dir", home / "decoded", "--vae-pth", checkpoint]
    command("decode/decode_latents_to_images.py", *files, "--batch-size-per-gpu", 8)
    return home / "decoded"


def test_reconstructions_are_scored_pair_by_pair_and_as_sets(command, photographs, reconstructions, home) -> None:
    folders = ["--ref-dir", reconstructions / "inputs", "--pred-dir", reconstructions / "outputs"]
    extractor = ["--all", "--extractor", "efficientnet_lite0"]
    command("reconstruct/evaluate.py", *folders, *extractor, "--output-json", home / "scores.json")
    scores = json.loads((home / "scores.json").read_text())
    assert scores["total"] == HELD_OUT
    pairs = [
        [torch.from_numpy(np.array(Image.open(folder / name))).double() for folder in (folders[1], folders[3])]
        for name in list_files(folders[1], [".png"])
    ]
    expected = torch.stack([psnr(a[None], b[None], 255.0) for a, b in pairs]).mean().item()
    assert scores["psnr"] == pytest.approx(expected, abs=1e-4)
    assert scores[FRECHET] > 0


def test_latents_are_prefetched_with_their_mirror_images_and_statistics(latents) -> None:
    shards = [load_file(path) for path in sorted(latents.glob("latents_rank*.safetensors"))]
    assert sum(len(shard["labels"]) for shard in shards) == 32
    stored = torch.cat([shard[name] for shard in shards for name in ("latents", "latents_flip")])
    assert stored.shape == (64, 32, 4, 4)
    statistics = torch.load(latents / "latents_stats.pt", weights_only=True)
    torch.testing.assert_close(statistics["mean"], stored.mean(dim=(0, 2, 3), keepdim=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(statistics["std"], stored.std(dim=(0, 2, 3), keepdim=True), rtol=0, atol=1e-5)


def test_decoded_latents_become_a_batch_that_generation_metrics_read(command, photographs, decoded, home) -> None:
    command("decode/save_images_as_npz.py", "--input-dir", decoded, "--output-npz", home / "samples.npz", "--num", 32)
    with np.load(home / "samples.npz") as batch:
        assert batch["arr_0"].shape == (32, 64, 64, 3) and batch["arr_0"].dtype == np.uint8
    sets = ["--ref", photographs / "heldout", "--sample", home / "samples.npz"]
    options = ["--extractor", "efficientnet_lite0", "--batch-size", 8, "--output-json", home / "generation.json"]
    command("evaluate_generation.py", *sets, *options)
    result = json.loads((home / "generation.json").read_text())
    assert result["samples"]["images"] == 32 and result["reference"]["images"] == HELD_OUT
    assert 0 <= result["metrics"]["efficientnet_lite0_precision"] <= 1
    assert result["metrics"][FRECHET] > 0


def test_photographs_become_samples_that_generation_metrics_read(
    command, photographs, latents, checkpoint, home
) -> None:
    config = {
        "system": "lightningdit",
        "run": {"run_dir": str(home / "diffusion"), "device": "cpu"},
        "data": {"path": str(latents), "workers": 0},
        "network": {"patch_size": 1, "hidden_size": 32, "depth": 2, "num_heads": 2, "input_size": 4, "num_classes": 18},
        "transport": {"use_cosine_loss": True, "use_lognorm": True},
        "training": {"batch_size": 8, "total_kimg": 0.016},
        "sample": {"num_sampling_steps": 4},
    }
    (home / "diffusion.yaml").write_text(yaml.safe_dump(config))
    training = Run(home / "diffusion.yaml")
    assert training.wait() == [0], training.text()
    request = ["--num-samples", 18, "--labels", "balanced", "--device", "cpu", "--batch-size-per-gpu", 9]
    from_run = ["--checkpoint", home / "diffusion", "--output-dir", home / "samples"]
    command("preprocess_for_lightningdit/sample.py", *from_run, *request)
    folders = ["--input-dir", home / "samples", "--output-dir", home / "images_of_samples", "--vae-pth", checkpoint]
    command("decode/decode_latents_to_images.py", *folders, "--batch-size-per-gpu", 9)
    labels = json.loads((home / "images_of_samples" / "labels.json").read_text())
    assert sorted(record["label_id"] for record in labels.values()) == list(range(18))
    sets = ["--ref", photographs / "heldout", "--sample", home / "images_of_samples"]
    options = ["--extractor", "efficientnet_lite0", "--batch-size", 8, "--output-json", home / "of_samples.json"]
    command("evaluate_generation.py", *sets, *options)
    result = json.loads((home / "of_samples.json").read_text())
    assert (result["samples"]["images"], result["reference"]["images"]) == (18, HELD_OUT)
    assert result["metrics"][FRECHET] > 0


def test_the_tokenizer_is_compared_with_its_encoder_in_one_report(command, photographs, checkpoint, home) -> None:
    images = home / "alignment" / "images"
    draw = ["--draw-from", photographs / "heldout", "--num-images", HELD_OUT, "--resolution", 64]
    command("evaluate_alignment/preprocess.py", "--output-dir", images, *draw, "--noise-levels", 0.1)
    config = {
        "images": str(images),
        "output_dir": str(home / "alignment"),
        "vfms": {"encoder": {"vfm_name": "efficientnet_lite0"}},
        "tokenizers": {"tokenizer": {"vae_pth": str(checkpoint)}},
        "rows": ["tokenizer", "encoder"],
        "columns": ["encoder"],
        "conditions": ["noise_0.100"],
        "topk": 3,
        "resolution": 64,
        "batch_size_per_gpu": 4,
        "device": "cpu",
    }
    (home / "alignment.yaml").write_text(yaml.safe_dump(config))
    command("evaluate_alignment/run.py", "--config", home / "alignment.yaml")
    report = json.loads((home / "alignment" / "report.json").read_text())
    assert (report["rows"], report["columns"]) == (["tokenizer", "encoder"], ["encoder"])
    (tokenizer,), (itself,) = report["se_cknna"]["values"]
    assert itself == pytest.approx(1.0, abs=1e-3) and tokenizer < itself
    assert "<svg" in (home / "alignment" / "report.html").read_text()
