"""How little reconstructions of a whole tokenizer, vision transformer included, depend on batches and ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from common.value_range import unit_to_uint8
from evaluation.images import list_images
from evaluation.quality import pair_folders, score_pairs, summarise
from evaluation.reconstruction import Protocol, reconstruct_folder
from networks.checkpoint import load_tokenizer

CPU = torch.device("cpu")
COUNT = 13  # a last batch that is not full, for every batch size and number of ranks below


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return load_tokenizer(tiny_tokenizer)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = np.kron(rng.integers(0, 256, (8, 9, 3)), np.ones((9, 9, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def reconstruct(model, pictures, out, batch_size: int) -> None:
    summary = reconstruct_folder(model, pictures, out, Protocol(64), batch_size=batch_size, device=CPU)
    assert summary.reconstructed == COUNT


def files(out) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "outputs").iterdir()}


def levels(out) -> np.ndarray:
    """[N, H, W, 3]"""
    return np.stack([np.asarray(Image.open(image.path)) for image in list_images(out / "outputs")]).astype(int)


@pytest.fixture
def floats(monkeypatch) -> list[torch.Tensor]:
    """What is about to be rounded to 8 bit, batch after batch, [B, 3, H, W] in [0, 1]."""
    seen: list[torch.Tensor] = []

    def recorded(images, rounding):
        seen.append(images.clone())
        return unit_to_uint8(images, rounding)

    monkeypatch.setattr("evaluation.reconstruction.unit_to_uint8", recorded)
    return seen


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_of_another_size_give_nearly_the_same_images(model, pictures, tmp_path, floats, batch_size) -> None:
    outputs, images, quality = [], [], []
    for size in (8, batch_size):
        floats.clear()
        out = tmp_path / str(size)
        reconstruct(model, pictures, out, size)
        images.append(torch.cat(floats)[:COUNT])
        outputs.append(levels(out))
        scores = score_pairs(pair_folders(out / "inputs", out / "outputs"), batch_size=4, workers=1, device=CPU)
        quality.append(summarise(scores))
    assert images[0].std() > 0.1  # pictures, not one grey
    assert (images[0] - images[1]).abs().max() <= 1e-5
    difference = np.abs(outputs[0] - outputs[1])
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3
    assert abs(quality[0].psnr - quality[1].psnr) <= 1e-3
    assert abs(quality[0].ssim - quality[1].ssim) <= 1e-5


@pytest.mark.parametrize(("batch_size", "ranks"), [(1, 2), (3, 2), (8, 2), (4, 3)])
def test_ranks_with_batches_of_one_size_write_the_same_bits(model, pictures, tmp_path, on_ranks, batch_size, ranks):
    reconstruct(model, pictures, tmp_path / "one", batch_size)
    on_ranks(ranks, lambda: reconstruct(model, pictures, tmp_path / "many", batch_size))
    assert len(files(tmp_path / "one")) == COUNT
    assert files(tmp_path / "many") == files(tmp_path / "one")
