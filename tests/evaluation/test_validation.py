"""Validation gives what the tools give for the same images, whatever the source, the batches and the ranks."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import distributed
from common.errors import DataError, UserError
from data.config import DataConfig
from data.write_shards import NewSample, write_shards
from evaluation.batches import spread
from evaluation.config import ValidationConfig
from evaluation.fidelity import score_sets
from evaluation.generation import Computing
from evaluation.quality import as_record, pair_folders, score_pairs, summarise
from evaluation.reconstruction import Protocol, reconstruct_batch, reconstruct_folder
from evaluation.validation import Validation

CPU = torch.device("cpu")
FRECHET = "efficientnet_lite0_frechet_distance"
COUNT = 7


@pytest.fixture
def folder(tmp_path) -> Path:
    """PNG files of several sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = np.kron(rng.integers(0, 256, (5, 6, 3)), np.ones((5 + number, 5, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"image_{number}.png")
    return folder


def validation_of(path: Path, shown: int = 4, **options) -> Validation:
    config = ValidationConfig(
        path=str(path), **{"perceptual": "none", "frechet": "none", "batch_size_per_gpu": 3, **options}
    )
    data = config.as_data(DataConfig(path="unused", resolution=16), with_labels=False)
    return Validation(config, data, None, shown, CPU)


def values_of(tokenizer, path: Path, **options) -> dict[str, float]:
    return validation_of(path, **options).run(by(tokenizer)).values


def by(tokenizer):
    return lambda batch, protocol: reconstruct_batch(tokenizer, batch.images, batch.keys, protocol)


@pytest.mark.parametrize("latent", ["sample", "mode"])
def test_numbers_are_those_of_the_tools(tokenizer, folder, tmp_path, latent) -> None:
    out = tmp_path / "out"
    reconstruct_folder(tokenizer, folder, out, Protocol(16, latent=latent, seed=5), batch_size=3, device=CPU)
    scores = score_pairs(pair_folders(out / "inputs", out / "outputs"), batch_size=2, workers=1, device=CPU)
    expected = as_record(summarise(scores))
    found = values_of(tokenizer, folder, latent=latent, seed=5)
    assert found == {name: expected[name] for name in ("psnr", "ssim", "ssim_01")} | {"images": COUNT, "skipped": 0}


def test_zip_files_and_shards_of_the_same_images_give_the_same_numbers(tokenizer, folder, tmp_path) -> None:
    files = sorted(folder.iterdir())
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    write_shards((NewSample(f.stem, f.read_bytes(), "png", 0) for f in files), tmp_path / "shards", shard_size=3)
    expected = values_of(tokenizer, folder)
    assert values_of(tokenizer, tmp_path / "images.zip", source="zip") == expected
    assert values_of(tokenizer, tmp_path / "shards", source="webdataset") == expected


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_batch_size_changes_nothing(tokenizer, folder, batch_size) -> None:
    assert values_of(tokenizer, folder, batch_size_per_gpu=batch_size) == values_of(tokenizer, folder)


def test_the_number_of_ranks_changes_nothing(tokenizer, folder, monkeypatch) -> None:
    alone = validation_of(folder).run(by(tokenizer))
    shares: list = []

    def gather(share):
        shares.append(share)
        return shares

    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "all_gather_objects", gather)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        together = validation_of(folder).run(by(tokenizer))  # of the last rank: it has gathered all
    assert [len(scored) for scored, _ in shares] == [3, 2, 2]
    assert together.values == alone.values
    assert torch.equal(together.inputs, alone.inputs) and torch.equal(together.outputs, alone.outputs)


def test_the_grid_shows_evenly_spread_images(tokenizer, folder) -> None:
    result = validation_of(folder, shown=3).run(by(tokenizer))
    first = validation_of(folder, shown=COUNT).run(by(tokenizer))
    assert result.inputs.shape == result.outputs.shape == (3, 3, 16, 16)
    assert torch.equal(result.inputs, first.inputs[[0, 2, 4]])


@pytest.mark.parametrize(("total", "count", "numbers"), [(10, 3, [0, 3, 6]), (4, 4, [0, 1, 2, 3]), (2, 9, [0, 1])])
def test_chosen_images_are_evenly_spread(total, count, numbers) -> None:
    assert spread(total, count) == numbers


def test_a_broken_image_is_left_out_counted_and_named_once(tokenizer, folder, caplog) -> None:
    broken = folder / "image_3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    validation = validation_of(folder)
    results = [validation.run(by(tokenizer)).values for _ in range(2)]
    assert results[0] == results[1]
    assert (results[0]["images"], results[0]["skipped"]) == (COUNT - 1, 1)
    assert caplog.text.count("Left out of the validation: images: image_3.png: truncated image") == 1
    broken.unlink()
    assert values_of(tokenizer, folder) == results[0] | {"skipped": 0}


def test_a_folder_that_vanishes_stops_nothing(tokenizer, folder) -> None:
    validation = validation_of(folder)
    for file in folder.iterdir():
        file.unlink()
    result = validation.run(by(tokenizer))
    assert result.values == {"images": 0, "skipped": COUNT}
    assert len(result.inputs) == 0


def test_a_set_without_images_is_an_error_at_the_start(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"validation\.path: .*empty: no sample is left.*validation\.source is folder"):
        validation_of(tmp_path / "empty")


def test_the_frechet_distance_is_that_of_the_tools(tokenizer, tiny_extractor, folder, tmp_path) -> None:
    out = tmp_path / "out"
    reconstruct_folder(tokenizer, folder, out, Protocol(16), batch_size=3, device=CPU)
    pairs = pair_folders(out / "inputs", out / "outputs")
    expected = score_sets(pairs, tiny_extractor, Computing(CPU, 3)).values[FRECHET]
    validation = validation_of(folder, frechet="efficientnet_lite0")
    first, second = (validation.run(by(tokenizer)).values for _ in range(2))  # the second knows the inputs' features
    assert first[FRECHET] == second[FRECHET] == expected > 0


@pytest.mark.usefixtures("tiny_extractor")
def test_the_frechet_distance_depends_on_neither_ranks_nor_batches(tokenizer, folder, on_ranks) -> None:
    expected = values_of(tokenizer, folder, frechet="efficientnet_lite0")[FRECHET]
    other = values_of(tokenizer, folder, frechet="efficientnet_lite0", batch_size_per_gpu=8)[FRECHET]
    assert other == pytest.approx(expected, rel=1e-4)
    assert on_ranks(2, lambda: values_of(tokenizer, folder, frechet="efficientnet_lite0")[FRECHET]) == [expected] * 2


def test_the_frechet_distance_is_named_as_what_it_is(folder, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert validation_of(folder, frechet="auto", best_metric=FRECHET).frechet_name == FRECHET
    with pytest.raises(UserError, match=f"best_metric: found rfid, but the Frechet distance here is {FRECHET}"):
        validation_of(folder, frechet="auto", best_metric="rfid")
    with pytest.raises(UserError, match=r"weights-inception-2015-12-05-6726825d\.pth, published at https://"):
        validation_of(folder, frechet="inception")
    with pytest.raises(UserError, match=r"nothing\.pth does not exist"):
        validation_of(folder, frechet="auto", inception_path=str(tmp_path / "nothing.pth"))


@pytest.mark.usefixtures("tiny_extractor")
def test_one_image_has_no_frechet_distance(tokenizer, folder) -> None:
    assert FRECHET not in values_of(tokenizer, folder, frechet="efficientnet_lite0", num_images=1)


def test_the_perceptual_distance_is_named_as_what_it_is(tokenizer, folder, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    values = values_of(tokenizer, folder, perceptual="auto")
    assert "lpips" not in values
    assert 0 < values["efficientnet_perceptual"] < 1
    with pytest.raises(UserError, match=r"best_metric: found lpips, but .* here is efficientnet_perceptual"):
        validation_of(folder, perceptual="auto", best_metric="lpips")
    with pytest.raises(UserError, match="LPIPS needs torchvision's VGG16 weights"):
        validation_of(folder, perceptual="lpips")


def test_the_fingerprint_tells_sets_and_protocols_apart(folder) -> None:
    same, *others = (
        validation_of(folder, **options).fingerprint()
        for options in ({"batch_size_per_gpu": 5}, {"num_images": 3}, {"seed": 1}, {"crop": "adm"})
    )
    assert same == validation_of(folder).fingerprint()
    assert len({same, *others}) == 4
