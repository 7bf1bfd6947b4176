"""Readers of prefetched latents: what an item is, and that files which do not fit together are named."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.errors import DataError
from data.latents import LatentDataset, flip_coin, write_statistics
from data.name_tensors import pack_names
from data.reg_latents import open_reg, reg_name, sample_moments

SHAPE = (3, 4, 2)


def write_shard(folder: Path, number: int, rows: int, shape=SHAPE, rank: int = 0, **changes) -> Path:
    generator = torch.Generator().manual_seed(100 * rank + number)
    tensors = {
        "latents": torch.randn(rows, *shape, generator=generator),
        "latents_flip": torch.randn(rows, *shape, generator=generator),
        "labels": torch.arange(rows) + 10 * number,
        **changes,
    }
    path = folder / f"latents_rank{rank:02d}_shard{number:03d}.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


@pytest.fixture
def folder(tmp_path):
    write_shard(tmp_path, 0, 3)
    write_shard(tmp_path, 1, 2)
    write_statistics(tmp_path, torch.tensor([0.5, -1.0, 2.0]), torch.tensor([2.0, 0.5, 4.0]))
    return tmp_path


def read_row(path: Path, column: str, row: int) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(path)[column][row]


def test_an_item_is_the_normalised_latent_of_its_row(folder):
    data = LatentDataset(folder, latent_multiplier=0.5)
    path = folder / "latents_rank00_shard001.safetensors"
    assert len(data) == 5 and data.latent_shape == SHAPE and data.rows.place(4) == (path, 1)
    mean, std = torch.tensor([0.5, -1.0, 2.0]).view(3, 1, 1), torch.tensor([2.0, 0.5, 4.0]).view(3, 1, 1)
    for coin, column in ((0.50001, "latents"), (0.5, "latents_flip")):
        item = data.item(4, coin)
        z = read_row(path, column, 1)
        assert item.label == 11 and torch.equal(item.z, (z - mean) / std * 0.5)
        assert torch.allclose(data.normalisation.denormalise(item.z), z, atol=1e-6)
    assert torch.equal(LatentDataset(folder, latent_norm=False).item(4, 0.9).z, read_row(path, "latents", 1))
    with pytest.raises(IndexError, match="row 5 of 5"):
        data.item(5, 0.0)


def test_the_flip_coin_is_fair_and_keyed_by_seed_and_position():
    draws = [flip_coin(3, position) for position in range(2000)]
    assert draws == [flip_coin(3, position) for position in range(2000)] and draws[0] != flip_coin(4, 0)
    assert 0.47 < np.mean(np.array(draws) > 0.5) < 0.53


def test_copies_in_loader_processes_read_the_same_items(folder):
    data = LatentDataset(folder)
    expected = [data.item(index, 0.7).z for index in range(5)]  # opened here before it is copied
    copy = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(copy.item(index, 0.7).z, z) for index, z in enumerate(expected))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.map(_FirstValues(data), range(5))
    assert found == [z.flatten()[:3].tolist() for z in expected]


class _FirstValues:
    def __init__(self, data):
        self.data = data

    def __call__(self, index):
        return self.data.item(index, 0.7).z.flatten()[:3].tolist()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shape": (5, 4, 2)}, r"shard001.*: latents: found rows of shape \[5, 4, 2\], but those of .*shard000"),
        ({"labels": torch.arange(3)}, r"shard001.*different numbers of rows \(latents 2, latents_flip 2, labels 3\)"),
        ({"labels": torch.zeros(2)}, r"shard001.*labels: found F32 of shape \[2\], expected I64 with 1 dimensions"),
        ({"latents_flip": None}, r"shard001.*holds the tensors labels, latents; expected also latents_flip"),
        ({"latents": torch.zeros(2, 3, 8)}, r"shard001.*latents: found F32 of shape \[2, 3, 8\], expected .* 4 dim"),
    ],
)
def test_a_file_that_does_not_fit_is_named(folder, changes, message):
    write_shard(folder, 1, 2, **changes)
    with pytest.raises(DataError, match=message):
        LatentDataset(folder)


def test_a_damaged_file_is_named(folder):
    path = folder / "latents_rank00_shard001.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"shard001\.safetensors: cannot be read as a safetensors file"):
        LatentDataset(folder)


def test_statistics_that_do_not_fit_are_named(folder, tmp_path):
    for mean, std, message in (
        (torch.zeros(4), torch.ones(4), r"mean: found the shape \[1, 4, 1, 1\], expected \[1, 3, 1, 1\]"),
        (torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]), "std: found 0, expected values above 0"),
        (torch.full((3,), torch.nan), torch.ones(3), "mean: holds values that are not finite"),
    ):
        write_statistics(folder, mean, std)
        with pytest.raises(DataError, match=rf"latents_stats\.pt: {message}"):
            LatentDataset(folder)
    torch.save([1, 2], folder / "latents_stats.pt")
    with pytest.raises(DataError, match="expected a dict with the tensors mean and std"):
        LatentDataset(folder)
    (folder / "latents_stats.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"latents_stats\.pt: is no file that torch\.save wrote"):
        LatentDataset(folder)
    (folder / "latents_stats.pt").unlink()
    with pytest.raises(DataError, match=r"latents_stats\.pt: missing; latents cannot be normalised without it"):
        LatentDataset(folder)


def test_an_empty_folder_and_an_unfinished_one_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        LatentDataset(folder / "nothing")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.safetensors files; prefetch latents first"):
        LatentDataset(folder / "empty")
    (folder / "index.json").write_text(json.dumps({"status": "running", "plan": {}}))
    with pytest.raises(DataError, match=r"index\.json: the prefetch into this folder has not ended"):
        LatentDataset(folder)


def test_files_that_the_index_does_not_know_are_refused(folder):
    sizes = [{"name": path.name, "bytes": path.stat().st_size} for path in folder.glob("*.safetensors")]
    (folder / "index.json").write_text(json.dumps({"status": "complete", "plan": {}, "files": sizes}))
    assert len(LatentDataset(folder)) == 5
    stale = write_shard(folder, 0, 4, rank=1)
    with pytest.raises(DataError, match=rf"{stale.name}: found \d+ bytes, but index\.json beside it says no such file"):
        LatentDataset(folder)


# --- REG --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def reg_folder(tmp_path):
    """Three items, listed in another order than that of their names."""
    labels = []
    for number, name in enumerate(("b/b_1", "a/a_2", "a/a_10")):
        for sub in ("images", "vae_latents"):
            (tmp_path / sub / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "vae_latents" / f"{name}.npy", np.full((6, 2, 2), number, dtype=np.float32))
        Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
        labels.append([f"{name}.npy", number])
    (tmp_path / "vae_latents" / "dataset.json").write_text(json.dumps({"labels": labels}))
    write_statistics(tmp_path / "vae_latents", torch.zeros(3), torch.ones(3))
    return tmp_path


def test_items_for_reg_are_paired_by_name_and_in_its_order(reg_folder):
    source = open_reg(reg_folder)
    assert [source.name(index) for index in range(3)] == ["a/a_10", "a/a_2", "b/b_1"]
    for index, number in enumerate((2, 1, 0)):
        item = source.item(index)
        assert item.label == number and item.image.shape == (3, 4, 4) and item.image.dtype == torch.uint8
        assert (item.image == number).all() and (item.moments == number).all() and item.moments.shape == (6, 2, 2)


def test_a_reg_folder_that_does_not_fit_together_is_refused(reg_folder):
    latents, images = reg_folder / "vae_latents", reg_folder / "images"
    (images / "b" / "b_1.png").rename(images / "b" / "b_7.png")
    with pytest.raises(DataError, match=r"b_1\.npy: has no image .*b_1\.png \(1 of 3 latents"):
        open_reg(reg_folder)
    (images / "b" / "b_7.png").rename(images / "b" / "b_1.png")
    Image.new("RGB", (4, 4)).save(images / "c_1.png")
    with pytest.raises(DataError, match=r"c_1\.png: has no latent .*c_1\.npy \(1 of 4 images"):
        open_reg(reg_folder)
    (images / "c_1.png").unlink()
    np.save(latents / "b" / "b_1.npy", np.zeros((8, 2, 2), dtype=np.float32))
    with pytest.raises(DataError, match=r"b_1\.npy: found the shape \[8, 2, 2\], but the first latent has \[6, 2, 2\]"):
        open_reg(reg_folder).item(2)
    (latents / "b" / "b_1.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"b_1\.npy: cannot be read"):
        open_reg(reg_folder).item(2)
    (images / "a" / "a_2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a_2\.png: cannot be read \(not an image: empty file\)"):
        open_reg(reg_folder).item(1)
    (latents / "dataset.json").write_text(json.dumps({"labels": [["a/a_2.npy", 1]]}))
    with pytest.raises(DataError, match=r"dataset\.json: has no label for a/a_10\.npy \(2 such files\)"):
        open_reg(reg_folder)
    (latents / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"dataset\.json: the labels cannot be read"):
        open_reg(reg_folder)


def test_a_folder_without_anything_for_reg_is_refused(reg_folder):
    with pytest.raises(DataError, match=r"found neither the folder other nor \*\.safetensors files"):
        open_reg(reg_folder, vae_folder="other")


def test_missing_statistics_are_an_error_for_reg(reg_folder):
    (reg_folder / "vae_latents" / "latents_stats.pt").unlink()
    with pytest.raises(DataError, match=r"vae_latents/latents_stats\.pt: missing"):
        open_reg(reg_folder).normalisation()


def test_shards_for_reg_need_images(tmp_path):
    tensors = {"moments": torch.zeros(1, 6, 2, 2), "labels": torch.zeros(1, dtype=torch.int64)}
    save_file({**tensors, "names": pack_names(["a_1"])}, tmp_path / "moments_rank00_shard000.safetensors")
    with pytest.raises(DataError, match="holds the tensors labels, moments, names; expected also images"):
        open_reg(tmp_path)


@pytest.mark.parametrize(
    "key, name", [("n01_7", "n01/n01_7"), ("7", "7/7"), ("train/n01_7", "train/n01/n01_7"), ("_7", "_7")]
)
def test_names_for_reg_begin_with_what_stands_before_the_underscore(key, name):
    assert reg_name(key) == name


def test_a_latent_is_drawn_from_its_moments():
    moments = torch.cat([torch.full((2, 1, 1), 3.0), torch.full((2, 1, 1), 0.5)])
    assert torch.equal(sample_moments(moments, torch.full((2, 1, 1), 2.0)), torch.full((2, 1, 1), 4.0))
