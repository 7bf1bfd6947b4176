"""VFMTok through the same commands as VFM-VAE: reconstruct, evaluate, prefetch, generate, decode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.value_range import signed_to_unit, uint8_to_unit, unit_to_uint8
from networks.checkpoint import load_tokenizer
from networks.vfmtok.tokenizer import VFMTokTokenizer
from tests.tiny import write_config, write_vfmtok
from tests.trainer.ar.tiny_runs import run_values
from tests.trainer.conftest import command  # noqa: F401  (a fixture)

ON_CPU = ("--device", "cpu", "--batch-size-per-gpu", 4)


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder, tmp_path_factory) -> Path:
    return write_vfmtok(tmp_path_factory.mktemp("vfmtok") / "tokenizer", tiny_encoder)


@pytest.fixture(scope="module")
def model(tokenizer) -> VFMTokTokenizer:
    return load_tokenizer(tokenizer)


def pixels_of(folder: Path) -> torch.Tensor:
    images = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(images)).movedim(-1, 1)


@torch.no_grad()
def test_reconstructions_are_rounded_as_published_and_scored_at_another_size(
    command,  # noqa: F811
    tiny_data,
    tokenizer,
    model,
    tmp_path,
    capsys,
):
    out = tmp_path / "reconstructions"
    flags = ("--input-dir", tiny_data, "--vae-pth", tokenizer, *ON_CPU)
    assert command("tools/reconstruct/reconstruct.py", *flags, "--output-dir", out, "--num-images", 6) == 0
    inputs, outputs = (pixels_of(out / name) for name in ("inputs", "outputs"))
    decoded = model.decode(model.encode(uint8_to_unit(inputs)).z).reconstruction
    expected = unit_to_uint8(signed_to_unit(decoded), "nearest")
    assert inputs.shape == (6, 3, 32, 32)
    assert (outputs.int() - expected.int()).abs().max() <= 1 and (outputs != expected).float().mean() < 1e-3
    assert json.loads((out / "manifest.json").read_text())["png_rounding"] == "nearest"

    folders = ("--ref-dir", out / "inputs", "--pred-dir", out / "outputs", "--device", "cpu")
    scores = []
    for resize in ((), ("--resize", 16)):
        assert command("tools/reconstruct/evaluate.py", *folders, *resize, "--output-json", tmp_path / "s.json") == 0
        scores.append(json.loads((tmp_path / "s.json").read_text()))
    assert scores[1]["protocol"]["sizes"] == "brought to 16 x 16 by PIL's bicubic filter"
    halves = [np.stack([_halved(image) for image in images]) for images in (inputs, outputs)]
    squared = ((halves[0] - halves[1]) ** 2).mean(axis=(1, 2, 3))
    assert scores[1]["psnr"] == pytest.approx((10 * np.log10(255**2 / squared)).mean(), abs=1e-5)
    assert scores[1]["psnr"] != scores[0]["psnr"]

    capsys.readouterr()
    assert command("tools/reconstruct/reconstruct.py", *flags, "--output-dir", out, "--resolution", 64) == 2
    assert "do not fit this tokenizer, which takes 32 x 32 only" in capsys.readouterr().err


def _halved(image: torch.Tensor) -> np.ndarray:
    picture = Image.fromarray(image.movedim(0, -1).numpy())
    return np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC)).astype(float)


def test_its_tokens_train_a_model_whose_samples_are_decoded(
    command,  # noqa: F811
    tiny_data,
    tokenizer,
    model,
    tmp_path,
):
    tokens = tmp_path / "tokens"
    encode = ("--data-path", tiny_data, "--vae-pth", tokenizer, *ON_CPU, "--crops", "centre")
    assert command("tools/preprocess_for_gpt/prefetch.py", *encode, "--output-dir", tokens) == 0
    (path,) = tokens.glob("*.safetensors")
    stored = load_file(path)["tokens"]
    assert stored.shape == (20, 2, 16) and int(stored.long().max()) < 48

    values = run_values(tokens, tmp_path / "gpt")
    values["network"]["vocab_size"] = 48
    config = write_config(values, tmp_path / "gpt.yaml")
    assert command("train.py", "--config", config, "--set", "training.total_kimg=0.004") == 0
    sample = ("--checkpoint", tmp_path / "gpt", "--num-samples", 3, *ON_CPU)
    assert command("tools/preprocess_for_gpt/sample.py", *sample, "--output-dir", tmp_path / "samples") == 0

    decode = ("--input-dir", tmp_path / "samples", "--vae-pth", tokenizer, *ON_CPU)
    script = "tools/decode/decode_latents_to_images.py"
    assert command(script, *decode, "--output-dir", tmp_path / "images", "--output-size", 24) == 0
    (path,) = (tmp_path / "samples").glob("*.safetensors")
    with torch.no_grad():
        images = model.decode(model.tokens_to_latent(load_file(path)["tokens"].long())).reconstruction
    small = torch.nn.functional.interpolate(images, size=(24, 24), mode="bicubic")
    expected = unit_to_uint8(signed_to_unit(small), "nearest")
    found = pixels_of(tmp_path / "images")
    assert found.shape == (3, 3, 24, 24)
    assert (found.int() - expected.int()).abs().max() <= 1 and (found != expected).float().mean() < 1e-3


def test_its_codes_are_prefetched_as_latents_too(command, tiny_data, tokenizer, tmp_path):  # noqa: F811
    flags = ("--data-path", tiny_data, "--vae-pth", tokenizer, *ON_CPU, "--output-dir", tmp_path / "latents")
    assert command("tools/preprocess_for_lightningdit/prefetch.py", *flags) == 0
    (path,) = (tmp_path / "latents").glob("latents_rank*.safetensors")
    assert load_file(path)["latents"].shape == (20, 6, 4, 4)
