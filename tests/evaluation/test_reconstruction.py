import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.errors import DataError, ShapeError, UserError
from common.value_range import uint8_to_unit, unit_to_uint8
from data.augment import adm_crop
from data.write_shards import NewSample, write_shards
from evaluation.images import list_images, open_images, torchvision_crop
from evaluation.reconstruction import Protocol, reconstruct_folder, reconstruct_share
from networks.fingerprint import weights_fingerprint

CPU = torch.device("cpu")
PROTOCOL = Protocol(resolution=16)
TOOL = Path(__file__).parents[2] / "tools" / "reconstruct" / "reconstruct.py"
GOLDEN = load_file(Path(__file__).parent.parent / "golden" / "tools_transforms.safetensors")


def make_images(folder, count=7):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 256, (20 + index, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image_{index}.{('png', 'JPG', 'jpeg', 'webp')[index % 4]}")
    return folder


def run(model, folder, output_dir, batch_size=4, protocol=PROTOCOL, **options):
    return reconstruct_folder(model, folder, output_dir, protocol, batch_size=batch_size, device=CPU, **options)


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


@pytest.fixture
def folder(tmp_path):
    return make_images(tmp_path / "images")


@pytest.fixture
def whole(tokenizer, folder, tmp_path):
    run(tokenizer, folder, tmp_path / "whole")
    return files_of(tmp_path / "whole")


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_files_do_not_depend_on_the_batch_size(batch_size, tokenizer, folder, whole, tmp_path):
    run(tokenizer, folder, tmp_path / "out", batch_size)
    assert len(whole) == 14 and files_of(tmp_path / "out") == whole


def test_two_ranks_write_the_same_files_as_one(tokenizer, folder, whole, tmp_path):
    images = list_images(folder)
    for rank in range(2):
        reconstruct_share(tokenizer, images[rank::2], tmp_path / "out", PROTOCOL, batch_size=3, device=CPU)
    assert files_of(tmp_path / "out") == whole


def test_leaving_images_out_changes_no_other(tokenizer, folder, whole, tmp_path):
    summary = run(tokenizer, folder, tmp_path / "out", num_images=2)
    files = files_of(tmp_path / "out")
    assert summary.reconstructed == 2 and len(files) == 4
    assert all(whole[name] == content for name, content in files.items())


def test_every_batch_has_the_full_size(tokenizer, folder, tmp_path):
    sizes = []
    encode = tokenizer.encode
    tokenizer.encode = lambda images, noise: sizes.append(len(images)) or encode(images, noise)
    run(tokenizer, folder, tmp_path / "out", 4)
    assert sizes == [4, 4]


def test_noise_is_keyed_by_seed_and_absent_from_the_mode(tokenizer, folder, whole, tmp_path):
    run(tokenizer, folder, tmp_path / "seed", protocol=Protocol(16, seed=1))
    run(tokenizer, folder, tmp_path / "mode", protocol=Protocol(16, latent="mode"))
    run(tokenizer, folder, tmp_path / "mode_again", protocol=Protocol(16, latent="mode", seed=1))
    name = "outputs/image_0.png"
    assert files_of(tmp_path / "seed")[name] != whole[name]
    assert files_of(tmp_path / "mode") == files_of(tmp_path / "mode_again")


def test_png_files_hold_the_crop_and_the_truncated_reconstruction(tokenizer, folder, tmp_path):
    run(tokenizer, folder, tmp_path, protocol=Protocol(16, latent="mode"))
    crop = torchvision_crop(Image.open(folder / "image_0.png"), 16)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "inputs" / "image_0.png")), crop)
    unit = uint8_to_unit(torch.from_numpy(crop.copy()).permute(2, 0, 1))[None]
    blocks = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(unit, 4) * 2 - 1, scale_factor=4)
    expected = unit_to_uint8((blocks + 1) / 2)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "outputs" / "image_0.png")), expected)


def test_two_images_of_one_name_are_refused_before_work(tokenizer, folder, tmp_path):
    (folder / "image_1.png").write_bytes((folder / "image_0.png").read_bytes())
    with pytest.raises(DataError, match=r"image_1.* and image_1.* would both be written as image_1.png"):
        run(tokenizer, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unreadable_images_are_counted_and_listed(tokenizer, folder, whole, tmp_path):
    content = (folder / "image_0.png").read_bytes()
    (folder / "image_0.png").write_bytes(content[: len(content) // 2])
    (folder / "note.png").write_text("not an image")
    summary = run(tokenizer, folder, tmp_path / "out", 3)
    assert (summary.found, summary.reconstructed) == (8, 6)
    assert [Path(item.name).name for item in summary.unreadable] == ["image_0.png", "note.png"]
    assert "truncated" in summary.unreadable[0].reason and "not an image" in summary.unreadable[1].reason
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"] == {"found": 8, "reconstructed": 6, "kept": 0, "unreadable": 2}
    assert all(whole[name] == content for name, content in files_of(tmp_path / "out").items())


def test_the_manifest_states_the_protocol_and_the_weights(tokenizer, folder, tmp_path):
    run(tokenizer, folder, tmp_path, description={"checkpoint": "runs/x"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["checkpoint"] == "runs/x"
    assert manifest["protocol"] == {"resolution": 16, "crop": "torchvision", "latent": "sample", "seed": 0}
    assert manifest["weights_sha256"] == weights_fingerprint(tokenizer.state_dict()) and manifest["versions"]["torch"]


def test_skip_existing_completes_an_interrupted_run(tokenizer, folder, whole, tmp_path):
    run(tokenizer, folder, tmp_path / "out")
    (tmp_path / "out" / "outputs" / "image_3.png").unlink()
    summary = run(tokenizer, folder, tmp_path / "out", skip_existing=True)
    assert (summary.reconstructed, summary.kept) == (1, 6)
    assert files_of(tmp_path / "out") == whole


def test_skip_existing_refuses_images_of_other_weights_or_another_protocol(tokenizer, folder, tmp_path):
    run(tokenizer, folder, tmp_path / "out")
    with pytest.raises(DataError, match=r"protocol: found .*'seed': 0.*expected .*'seed': 7"):
        run(tokenizer, folder, tmp_path / "out", protocol=Protocol(16, seed=7), skip_existing=True)
    tokenizer.gain.data.mul_(0.5)
    with pytest.raises(DataError, match="weights_sha256: found"):
        run(tokenizer, folder, tmp_path / "out", skip_existing=True)


def test_left_over_images_of_an_earlier_run_are_refused(tokenizer, folder, tmp_path):
    run(tokenizer, folder, tmp_path / "out")
    with pytest.raises(DataError, match=r"holds 6 PNG files .* such as image_1\.png"):
        run(tokenizer, folder, tmp_path / "out", num_images=1)


def test_recursive_keeps_sub_folders(tokenizer, folder, tmp_path):
    make_images(folder / "more", 1)
    run(tokenizer, folder, tmp_path / "out", recursive=True)
    assert (tmp_path / "out" / "outputs" / "more" / "image_0.png").is_file()
    with pytest.raises(DataError, match="lies inside the input folder"):
        run(tokenizer, folder, folder / "out", recursive=True)


def write_as_shards(folder, target):
    samples = (NewSample(f.stem, f.read_bytes(), f.suffix[1:].lower()) for f in sorted(folder.iterdir()))
    return write_shards(samples, target, shard_size=3).shards


def test_shards_give_the_same_files_as_the_folder_of_their_images(tokenizer, folder, whole, tmp_path):
    write_as_shards(folder, tmp_path / "shards")
    summary = run(tokenizer, tmp_path / "shards", tmp_path / "out")
    assert files_of(tmp_path / "out") == whole and (summary.found, summary.reconstructed) == (7, 7)


def test_what_is_wrong_with_shards_counts_as_unreadable(tokenizer, folder, whole, tmp_path):
    last = write_as_shards(folder, tmp_path / "shards")[-1]
    last.write_bytes(last.read_bytes()[:600])
    summary = run(tokenizer, tmp_path / "shards", tmp_path / "out")
    assert (summary.found, summary.reconstructed) == (7, 6)
    assert [(image.name, image.reason) for image in summary.unreadable] == [
        ("shard-000002.tar: image_6", "truncated shard")
    ]
    assert files_of(tmp_path / "out") == {name: whole[name] for name in whole if "image_6" not in name}


def test_a_folder_of_images_and_shards_and_a_key_that_leads_out_are_refused(folder, tmp_path):
    content = (folder / "image_0.png").read_bytes()
    shard = write_shards([NewSample("../evil", content, "png")], tmp_path / "shards").shards[0]
    with pytest.raises(DataError, match=r"\.\./evil: this key would name a file outside"):
        open_images(shard)
    (tmp_path / "shards" / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"shards: holds images and \*\.tar shards; expected one kind"):
        open_images(tmp_path / "shards")


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(UserError, match="crop 'centre' is not known"):
        Protocol(16, crop="centre")
    with pytest.raises(DataError, match="not a folder"):
        list_images(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no image found, expected files with \.jpg"):
        list_images(tmp_path)


@pytest.mark.parametrize("size", ["150x101", "64x80", "40x50", "257x300"])
def test_the_adm_crop_equals_the_reference(size):
    image = Image.fromarray(GOLDEN[f"adm_crop.in.{size}"].numpy())
    difference = adm_crop(image, 64).astype(int) - GOLDEN[f"adm_crop.out.{size}_to_64"].numpy()
    assert np.abs(difference).max() <= 1


def test_the_torchvision_crop_equals_the_reference():
    crop = torchvision_crop(Image.fromarray(GOLDEN["adm_crop.in.150x101"].numpy()), 64)
    expected = GOLDEN["recon_preprocess.150x101_to_64"].permute(1, 2, 0).numpy() * 255
    assert np.abs(crop - expected).max() <= 1.001


def test_the_command_ends_with_1_if_an_image_was_not_readable(tokenizer, folder, tmp_path, monkeypatch, capsys):
    checkpoint = types.SimpleNamespace(load_tokenizer=lambda *args, **kwargs: tokenizer)
    monkeypatch.setitem(sys.modules, "networks.checkpoint", checkpoint)
    arguments = ["--input-dir", str(folder), "--output-dir", str(tmp_path / "out"), "--vae-pth", "x", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["reconstruct.py", *arguments])
    main = runpy.run_path(str(TOOL))["main"]
    assert main() == 0
    assert "7 images reconstructed" in capsys.readouterr().out
    (folder / "image_2.jpeg").write_bytes(b"")
    assert main() == 1
    assert "error: 1 of 7 images not readable" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["reconstruct.py", *arguments, "--resolution", "18"])
    with pytest.raises(ShapeError, match="multiples of 4"):
        main()
