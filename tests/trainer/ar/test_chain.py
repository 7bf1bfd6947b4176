"""From photographs to samples through the commands: prefetch tokens, train, sample, decode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from common.value_range import uint8_to_unit
from data.name_tensors import unpack_names
from data.tokens import TokenFolder
from evaluation.images import CROPS, to_tensor
from evaluation.prefetch.tokens import TokenFormat
from networks.checkpoint import load_tokenizer
from tests.tiny import write_config
from tests.trainer.ar.tiny_runs import run_values, write_discrete_tokenizer

TOOLS = "tools/preprocess_for_gpt"
ON_CPU = ("--device", "cpu", "--batch-size-per-gpu", 4)


def samples_in(folder: Path) -> dict[str, torch.Tensor]:
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    rows = {name: [file[name] for file in files] for name in ("tokens", "labels")}
    return {name: torch.cat([part.long() for part in parts]) for name, parts in rows.items()}


def test_ten_crops_are_corners_and_centre_of_the_image_and_of_its_mirror_image() -> None:
    kind = TokenFormat("ten", 336)
    assert kind.crop_side(336) == 369 and TokenFormat("centre", 336).crop_side(336) == 336
    images = torch.arange(3 * 6 * 6, dtype=torch.uint8).reshape(1, 3, 6, 6)
    views = TokenFormat("ten", 4).views(images)
    corners = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    for whole, found in ((images, views[:5]), (images.flip(-1), views[5:])):
        expected = [whole[..., top : top + 4, left : left + 4] for top, left in corners]
        assert all(torch.equal(view, crop) for view, crop in zip(found, expected, strict=True))


def test_photographs_become_samples(
    command, tiny_data, discrete_tokenizer, tiny_tokenizer, tiny_encoder, tmp_path, capsys
) -> None:
    tokens, model = tmp_path / "tokens", load_tokenizer(discrete_tokenizer)
    encode = ("--data-path", tiny_data, "--vae-pth", discrete_tokenizer, "--resolution", 32, *ON_CPU)
    assert command(f"{TOOLS}/prefetch.py", *encode, "--output-dir", tokens) == 0
    assert command(f"{TOOLS}/prefetch.py", *encode, "--output-dir", tmp_path / "centre", "--crops", "centre") == 0
    ten, centre = TokenFolder(tokens), TokenFolder(tmp_path / "centre")
    assert (len(ten), ten.views, len(centre), centre.views) == (20, 10, 20, 2)
    assert (ten.kind.codes, ten.kind.grid) == (12, (4, 4))
    (path,) = (tmp_path / "centre").glob("*.safetensors")
    assert (
        unpack_names(load_file(path)["names"])[3] == "picture_003" and load_file(path)["tokens"].dtype == torch.uint16
    )
    coarse = np.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(np.kron(coarse, np.ones((20, 18, 1), dtype=np.uint8)))
    image = uint8_to_unit(to_tensor(CROPS["adm"](picture, 32)))[None]
    for view, pixels in enumerate((image, image.flip(-1))):
        with torch.no_grad():
            expected = model.encode(pixels, noise=torch.zeros(())).quantized.indices.flatten()
        assert torch.equal(centre.item(3, view), expected)
    assert len({tuple(ten.item(3, view).tolist()) for view in range(10)}) > 3

    config = write_config(run_values(tokens, tmp_path / "run"), tmp_path / "run.yaml")
    assert command(f"{TOOLS}/train.py", "--config", config, "--set", "training.total_kimg=0.008") == 0

    sampled = []
    for name, batch in (("a", 2), ("b", 5)):
        flags = ("--cfg-scale", 2.0, "--cfg-interval", 3, "--top-k", 9, "--top-p", 0.9, "--temperature", 1.1)
        request = ("--num-samples", 5, "--seed", 1, "--samples-per-shard", 3, *flags)
        where = ("--checkpoint", tmp_path / "run", "--output-dir", tmp_path / name)
        assert command(f"{TOOLS}/sample.py", *where, *request, "--device", "cpu", "--batch-size-per-gpu", batch) == 0
        sampled.append(samples_in(tmp_path / name))
    assert torch.equal(sampled[0]["tokens"], sampled[1]["tokens"])
    assert sampled[0]["tokens"].shape == (5, 1, 4, 4)
    assert sampled[0]["labels"].tolist() == [0, 1, 2, 0, 1]
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["tokens"] == ten.kind.to_json()
    assert manifest["sampling"]["top_k"] == 9 and manifest["sampling"]["cfg_interval"] == 3

    decode = ("--input-dir", tmp_path / "a", "--output-dir", tmp_path / "images", "--vae-pth", discrete_tokenizer)
    assert command("tools/decode/decode_latents_to_images.py", *decode, *ON_CPU) == 0
    images = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "images").glob("*.png"))]
    assert [image.shape for image in images] == [(32, 32, 3)] * 5
    with torch.no_grad():
        decoded = model.decode(model.tokens_to_latent(sampled[0]["tokens"][4:])).reconstruction[0]
    levels = ((decoded.clamp(-1, 1) + 1) / 2 * 255).permute(1, 2, 0).numpy()
    assert np.abs(levels - images[4]).max() <= 1.01

    capsys.readouterr()
    others = (
        ({"latent.vocab_size": 16}, "manifest.json: found tokens of a codebook of 12 codes, but that of this"),
        ({"decoder.num_res_blocks": 2}, "which is not that of this one; give the tokenizer"),
        (None, "this tokenizer has none, for its latent is continuous"),
    )
    for number, (changes, message) in enumerate(others):
        other = tiny_tokenizer
        if changes is not None:
            other = write_discrete_tokenizer(tmp_path / f"other{number}", tiny_encoder, **changes)
        arguments = ("--input-dir", tmp_path / "a", "--output-dir", tmp_path / "x", "--vae-pth", other)
        assert command("tools/decode/decode_latents_to_images.py", *arguments, *ON_CPU) == 2
        assert message in capsys.readouterr().err


def test_tokens_without_a_manifest_are_decoded_if_the_tokenizer_has_such_codes(
    command,
    discrete_tokenizer,
    tmp_path,
    capsys,
) -> None:
    def decode(name: str, tokens: torch.Tensor) -> tuple[int, str]:
        (tmp_path / name).mkdir()
        save_file({"tokens": tokens}, tmp_path / name / "samples_rank00_shard000.safetensors")
        decode = (
            "--input-dir",
            tmp_path / name,
            "--output-dir",
            tmp_path / f"{name} out",
            "--vae-pth",
            discrete_tokenizer,
        )
        return command("tools/decode/decode_latents_to_images.py", *decode, *ON_CPU), capsys.readouterr().err

    tokens = torch.arange(32, dtype=torch.int32).reshape(2, 1, 4, 4) % 12
    assert decode("fit", tokens)[0] == 0
    assert len(list((tmp_path / "fit out").glob("*.png"))) == 2
    tokens[1, 0, 2, 2] = 12
    code, message = decode("large", tokens)
    assert code == 2 and "tokens: row 1: found 0 to 12, expected 0 to 11, the codes of this tokenizer" in message
    code, message = decode("books", tokens.reshape(2, 2, 4, 2))
    assert code == 2 and "found those of 2 codebooks ([2, 4, 2] per sample), expected 1" in message


def test_what_cannot_be_sampled_is_refused_and_a_file_of_the_reference_can(
    command,
    tokens,
    tiny_tokenizer,
    tmp_path,
    capsys,
) -> None:
    config = write_config(run_values(tokens, tmp_path / "run"), tmp_path / "run.yaml")
    tool, to = f"{TOOLS}/sample.py", ("--output-dir", tmp_path / "out", "--device", "cpu")
    assert command("train.py", "--config", config, "--set", "training.total_kimg=0.004") == 0
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    torch.save({"ema": load_file(folder / "model.safetensors")}, tmp_path / "GPT-0000001.pt")
    capsys.readouterr()
    for arguments, message in (
        (("--checkpoint", tmp_path / "GPT-0000001.pt"), "a file carries no configuration, give --config"),
        (("--checkpoint", tmp_path), "no complete checkpoint here"),
        (("--checkpoint", tiny_tokenizer), "found a checkpoint of vfm_vae, expected one of an autoregressive model"),
        (("--checkpoint", tmp_path / "run", "--top-p", 0), "sample.top_p: found 0.0, expected a value greater than 0"),
        (("--checkpoint", tmp_path / "run", "--classes", "3"), "classes: found 3, expected numbers from 0 to 2"),
    ):
        assert command(tool, *arguments, *to) == 2, arguments
        assert message in capsys.readouterr().err, arguments
    few = ("--num-samples", 2, "--cfg-scale", 1.0)
    file = ("--checkpoint", tmp_path / "GPT-0000001.pt", "--use-config", config)
    assert command(tool, *file, *few, *to) == 0
    own = ("--output-dir", tmp_path / "own", "--device", "cpu")
    assert command(tool, "--checkpoint", tmp_path / "run", *few, *own) == 0
    assert torch.equal(samples_in(tmp_path / "out")["tokens"], samples_in(tmp_path / "own")["tokens"])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["tokens"]["tokenizer_sha256"] is None
