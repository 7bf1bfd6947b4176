import json
import logging
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.errors import DataError, UserError
from data.name_tensors import pack_names, unpack_names
from evaluation.alignment.conditions import PUBLISHED, expand
from evaluation.alignment.config import AutoencoderSection, TokenizerSection, VFMSection, load_alignment_config
from evaluation.alignment.extraction import ExtractionOptions, extract_condition, extract_to_folder
from evaluation.alignment.features import read_features
from evaluation.alignment.images import AnalysisImages, flat_name
from evaluation.alignment.latents import PrefetchOptions, copy_statistics, labels_of, prefetch_latents
from evaluation.alignment.models.base import fill_up_sides, load_model
from evaluation.alignment.models.tokenizer import TokenizerFeatures
from evaluation.alignment.preprocess import CleanDraw, draw_clean_set, use_clean_set, write_noise, write_transforms
from evaluation.alignment.transforms import ImageTransform, add_noise, apply_transform, draw_transform

CPU = torch.device("cpu")
TOOLS = Path(__file__).parents[2] / "tools" / "evaluate_alignment"
HOW = ExtractionOptions(resolution=32, batch_size=4, device=CPU, workers=2)


def write_images(folder, count=10, side=32):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        pixels = np.kron(coarse, np.ones((side // 4, side // 4, 1), dtype=np.uint8))
        Image.fromarray(pixels).save(folder / f"n0144{index % 2}764_{index}.png")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A whole set: clean images, transformations, noise."""
    root = tmp_path_factory.mktemp("alignment")
    write_images(root / "clean")
    write_transforms(root, seed=42)
    for level in (0.05, 0.1, 0.15, 0.2):
        write_noise(root, level, 32, seed=42, workers=2, show_progress=False)
    return root


@pytest.fixture
def images(root):
    return AnalysisImages(root)


@pytest.fixture
def model(tokenizer):
    """The latent of a small tokenizer whose features depend on the image alone, or on its name too."""
    tokenizer.image_multiple = 4
    return TokenizerFeatures(tokenizer, "sample", seed=0)


def run_tool(name, *arguments):
    sys.argv = [name, *map(str, arguments)]
    return runpy.run_path(str(TOOLS / name))["main"]()


@pytest.fixture(autouse=True)
def kept_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", list(sys.argv))


# --- images and transformations ------------------------------------------------------------------------------------


def test_noise_does_not_depend_on_the_number_of_threads(root, tmp_path):
    use_clean_set(tmp_path, root / "clean")
    write_noise(tmp_path, 0.1, 32, seed=42, workers=7, show_progress=False)
    for place, path in enumerate(sorted((root / "clean").iterdir(), key=lambda path: path.stem)):
        expected = add_noise(np.asarray(Image.open(path)), 0.1, place, 42)
        for folder in (root, tmp_path):
            assert np.array_equal(np.asarray(Image.open(folder / "noise_0.100" / path.name)), expected)


def test_transformations_are_drawn_by_place_in_the_list_sorted_by_stem(tmp_path):
    for name in ("a", "a-b", "b"):  # by file name, a-b.png would come before a.png
        write_images(tmp_path / name, 1)
        (tmp_path / "clean").mkdir(exist_ok=True)
        next((tmp_path / name).iterdir()).rename(tmp_path / "clean" / f"{name}.png")
    write_transforms(tmp_path, seed=42)
    content = json.loads((tmp_path / "equivariance_transforms.json").read_text())
    drawn = [draw_transform(place, 42) for place in range(3)]
    assert content == {n: {"rotation": t.rotation, "scale": t.scale} for n, t in zip(("a", "a-b", "b"), drawn)}
    assert list(content) == ["a", "a-b", "b"]


def test_images_are_turned_counter_clockwise_before_they_are_scaled():
    image = torch.zeros(1, 1, 4, 8)
    image[..., :, 7] = 1  # the right edge
    found = apply_transform(image, ImageTransform(rotation=90, scale=0.5))
    assert found.shape == (1, 1, 4, 2) and found[0, 0, 0].min() > 0.3 and found[0, 0, 2:].max() == 0


def test_a_clean_set_is_drawn_from_shards_and_folders(tiny_data, tmp_path, caplog):
    how = CleanDraw(str(tiny_data), 5, 32, "adm", seed=1)
    assert draw_clean_set(tmp_path / "a", how, workers=2, show_progress=False) == []
    drawn = sorted(path.name for path in (tmp_path / "a" / "clean").iterdir())
    assert len(drawn) == 5 and Image.open(tmp_path / "a" / "clean" / drawn[0]).size == (32, 32)
    draw_clean_set(tmp_path / "again", how, workers=3, show_progress=False)
    assert sorted(path.name for path in (tmp_path / "again" / "clean").iterdir()) == drawn
    folder = write_images(tmp_path / "data" / "n01440764", 4)
    (folder / "broken.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        left_out = draw_clean_set(
            tmp_path / "b", CleanDraw(str(tmp_path / "data"), 4, 32, "adm", 0), workers=1, show_progress=False
        )
    assert len(left_out) <= 1 and len(list((tmp_path / "b" / "clean").iterdir())) == 4
    with pytest.raises(DataError, match="holds 5 images, expected at least --num-images = 9"):
        draw_clean_set(tmp_path / "c", CleanDraw(str(tmp_path / "data"), 9, 32, "adm", 0), 1, False)
    with pytest.raises(DataError, match="only 4 of its images are readable, expected 5"):
        draw_clean_set(tmp_path / "d", CleanDraw(str(tmp_path / "data"), 5, 32, "adm", 0), 1, False)
    with pytest.raises(DataError, match="is there already; remove it"):
        draw_clean_set(tmp_path / "a", how, 1, False)


def test_names_of_drawn_images_keep_the_class_of_their_folder():
    assert flat_name("val/n01440764/ILSVRC2012_val_00000293") == "n01440764_ILSVRC2012-val-00000293"
    assert flat_name("n01440764/n01440764_10026") == "n01440764_10026"
    assert flat_name("n01440764_10026") == "n01440764_10026"


def test_a_set_that_is_not_whole_is_an_error(tmp_path, model):
    with pytest.raises(DataError, match=r"clean: does not exist; .* --draw-from DATA` draws one"):
        AnalysisImages(tmp_path)
    write_images(tmp_path / "clean", 3)
    images = AnalysisImages(tmp_path)
    equivariance, noise = expand(["equivariance", "noise_0.050"])
    with pytest.raises(DataError, match=r"equivariance_transforms.json: cannot be read .*; make it with `python tools"):
        images.under(equivariance)
    with pytest.raises(DataError, match=r"noise_0.050: does not exist; make it with"):
        images.under(noise)
    write_transforms(tmp_path, 42)
    (tmp_path / "clean" / "n01440764_0.png").rename(tmp_path / "clean" / "n01440764_9.png")
    with pytest.raises(DataError, match="2 names are not those of the clean set, such as 'n01440764_0'"):
        AnalysisImages(tmp_path).under(equivariance)
    (tmp_path / "equivariance_transforms.json").write_text("[1]")
    with pytest.raises(DataError, match=r'expected \{name: \{"rotation": 90, "scale": 0.5}}'):
        images.under(equivariance)
    turned = {image.key: {"rotation": 45, "scale": 0.5} for image in images.clean}
    (tmp_path / "equivariance_transforms.json").write_text(json.dumps(turned))
    with pytest.raises(DataError, match=r"found rotation 45 and scale 0\.5"):
        images.under(equivariance)
    (tmp_path / "clean" / "n01441764_1.png").write_bytes(b"no image")
    clean = images.under(expand(["clean"])[0])
    with pytest.raises(DataError, match=r"n01441764_1\.png: not readable"):
        extract_condition(model, [image for image in clean if image.file.key == "n01441764_1"], HOW)


# --- extraction ----------------------------------------------------------------------------------------------------


def test_features_do_not_depend_on_batches_or_on_the_split_over_ranks(images, model, monkeypatch):
    conditioned = images.under(expand(["equivariance"])[0])
    whole = extract_condition(model, conditioned, HOW)["latent"]
    assert whole.names == tuple(image.key for image in images.clean)
    assert {record["scale"] for record in whole.transformations} > {1.0}
    single = extract_condition(model, conditioned, ExtractionOptions(32, 1, CPU))["latent"]
    assert torch.allclose(single.features, whole.features, atol=1e-6)
    shares = []
    monkeypatch.setattr("common.distributed.world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr("common.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("common.distributed.all_gather_objects", lambda value: shares.append(value) or [value])
        extract_condition(model, conditioned, HOW)
    gathered = {name: row for share in shares if share for names, values in [share] for name, row in zip(names, values)}
    assert all(torch.equal(gathered[name], row) for name, row in zip(whole.names, whole.features))


def test_extraction_keeps_what_is_there_and_replaces_what_is_of_other_weights(images, model, tmp_path):
    section, conditions = TokenizerSection(vae_pth="x"), expand(["clean", "published"])

    def extract():
        return extract_to_folder(model, section, images, conditions, tmp_path, "vae", HOW)

    assert extract() == 6 and extract() == 0
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {f"vae_{name}.pt" for name in ("clean", *PUBLISHED)}
    found = read_features(tmp_path / "vae_noise_0.100.pt")
    assert found.transformations[0] == {"mode": "noise", "noise_level": 0.1}
    assert found.facts["weights_sha256"] == model.weights_sha256 and found.facts["num_images"] == 10
    (tmp_path / "vae_clean.pt").write_bytes(b"cut")
    assert extract() == 1
    model.weights_sha256 = "other"
    assert extract() == 6


def test_sides_are_filled_up_by_reflection():
    image = torch.arange(3.0).view(1, 1, 1, 3).expand(1, 1, 2, 3)
    found = fill_up_sides(image, 4)
    assert found.shape == (1, 1, 4, 4) and found[0, 0, 0].tolist() == [0, 1, 2, 1]
    assert fill_up_sides(image[..., :2], 8)[0, 0, 0].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert fill_up_sides(found, 4) is found


def test_every_layer_of_an_encoder_is_the_mean_over_its_tokens(tiny_encoder):
    section = VFMSection(vfm_name=str(tiny_encoder), layers="all", scale_factor=2.0)
    model = load_model(section, CPU, None)
    assert model.outputs == ("layer_1", "layer_2", "layer_-1")
    pixels = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))  # 20 pixels are 5 patches at scale 2
    found = model.features(pixels, ["a", "b"])
    tokens = model.encoder(pixels).levels
    assert all(torch.equal(found[name], level.mean(1)) for name, level in zip(model.outputs, tokens))
    summary = load_model(VFMSection(vfm_name=str(tiny_encoder), pool="summary"), CPU, None)
    whole = fill_up_sides(pixels, 8)
    assert torch.equal(summary.features(pixels, ["a", "b"])["summary"], summary.encoder.pooled(whole))
    with pytest.raises(UserError, match="layer 9 does not exist; this encoder has 3 blocks"):
        load_model(VFMSection(vfm_name=str(tiny_encoder), layers=[9]), CPU, None)


def test_latents_of_a_diffusers_autoencoder_are_scaled_and_seeded_by_name(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    autoencoder.save_pretrained(tmp_path)
    pixels = torch.rand(2, 3, 16, 16)
    mode, sample = (
        load_model(AutoencoderSection(path=str(tmp_path), latent=latent, apply_scaling=True), CPU, None)
        for latent in ("mode", "sample")
    )
    with torch.no_grad():
        expected = autoencoder.encode(pixels * 2 - 1).latent_dist.mean * autoencoder.config.scaling_factor
        assert torch.allclose(mode.latents(pixels, ["a", "b"]), expected, atol=1e-6)
        both = sample.latents(pixels, ["a", "b"])
        assert torch.allclose(sample.latents(pixels[1:], ["b"]), both[1:], atol=1e-6)
        assert not torch.allclose(both, expected, atol=1e-3)


def test_a_missing_autoencoder_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"has no config.json; expected the folder of an AutoencoderKL"):
        load_model(AutoencoderSection(path=str(tmp_path)), CPU, None)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="takes the diffusers library, which is not installed"):
        load_model(AutoencoderSection(path=str(tmp_path)), CPU, None)


# --- latents -------------------------------------------------------------------------------------------------------


def test_latents_are_written_with_labels_and_names(root, model, tmp_path):
    how = PrefetchOptions(32, batch_size=4, per_file=6, device=CPU, with_labels=False)
    assert prefetch_latents(model, None, root / "clean", tmp_path, how) == 10
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"latents_rank00_batch00{k}.safetensors" for k in range(2)]
    second = load_file(tmp_path / files[1])
    names = sorted(path.stem for path in (root / "clean").iterdir())
    assert unpack_names(second["names"]) == names[6:] and second["labels"].tolist() == [1000] * 4
    assert second["latents"].shape == (4, 3, 8, 8) and second["latents"].dtype == torch.float32
    with pytest.raises(DataError, match="holds latents already"):
        prefetch_latents(model, None, root / "clean", tmp_path, how)


def test_classes_are_read_from_names():
    assert labels_of(["n01440764_1", "n15075141_ILSVRC2012-val-3"]) == {
        "n01440764_1": 0,
        "n15075141_ILSVRC2012-val-3": 999,
    }
    with pytest.raises(DataError, match="1 of 2 names do not begin with an ImageNet-1k synset, such as 'cat_1'"):
        labels_of(["n01440764_1", "cat_1"])


def test_statistics_of_the_training_are_copied(model, tmp_path):
    copy_statistics(None, model, tmp_path)
    assert not list(tmp_path.iterdir())
    torch.save({"mean": torch.ones(1, 3, 1, 1), "std": torch.full((1, 3, 1, 1), 2.0)}, tmp_path / "stats.pt")
    copy_statistics(tmp_path / "stats.pt", model, tmp_path)
    assert torch.load(tmp_path / "latents_stats.pt", weights_only=True)["std"].flatten().tolist() == [2, 2, 2]
    torch.save([1], tmp_path / "wrong.pt")
    with pytest.raises(DataError, match="expected a file with the tensors `mean` and `std`"):
        copy_statistics(tmp_path / "wrong.pt", model, tmp_path)


def test_names_survive_as_a_tensor():
    names = ["n01440764_001", "ü", "", "x" * 40]
    assert unpack_names(pack_names(names)) == names
    with pytest.raises(DataError, match=r"names: found torch.float32 of shape \[2\]"):
        unpack_names(torch.zeros(2))


# --- commands ------------------------------------------------------------------------------------------------------


def test_a_whole_analysis_by_commands(root, tiny_encoder, tmp_path, capsys):
    config = tmp_path / "alignment.yaml"
    config.write_text(
        f"images: {root}\noutput_dir: {tmp_path / 'run'}\nresolution: 32\nbatch_size_per_gpu: 4\ndevice: cpu\n"
        f"vfms:\n  all: {{vfm_name: {tiny_encoder}, layers: all, scale_factor: 2.0}}\n"
        f"  last: {{vfm_name: {tiny_encoder}, scale_factor: 2.0}}\n"
        "rows: [all]\ncolumns: [last]\ntopk: 3\nhalves: 4\n"
    )
    run_tool("run.py", "--config", config)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["rows"] == ["all layer_1", "all layer_2", "all layer_-1"] and report["columns"] == ["last"]
    assert report["se_cknna"]["values"][2][0] == pytest.approx(1, abs=1e-3)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 3 and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    lines = (tmp_path / "run" / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 7 and lines[1].startswith("all layer_1,last,cknna,3,se_cknna,0.")

    features = tmp_path / "run" / "features"
    written = {path: path.stat().st_mtime_ns for path in features.iterdir()}
    run_tool("run.py", "--config", config, "--set", "topk=4")
    assert {path: path.stat().st_mtime_ns for path in features.iterdir()} == written

    run_tool("se_cknna.py", "--feat-prefix1", features / "all_layer_1", "--feat-prefix2", features / "last",
             "--topk", "3", "--device", "cpu", "--output", tmp_path / "se.json")  # fmt: skip
    found = json.loads((tmp_path / "se.json").read_text())
    assert found["se_cknna"]["values"][0] == report["se_cknna"]["values"][0]
    capsys.readouterr()
    run_tool("metrics.py", "--rows", features / "all_layer_*_clean.pt", "--cols", features / "last_clean.pt",
             "--topk", "3", "--device", "cpu", "--heat-map", tmp_path / "map.svg")  # fmt: skip
    assert f"cknna: {report['clean']['values'][0][0]:.4f}  all_layer_1_clean  last_clean" in capsys.readouterr().out
    assert (tmp_path / "map.svg").read_text().startswith("<svg")


def test_all_problems_of_a_configuration_are_in_one_report(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "images: x\noutput_dir: y\nvfms: {dino: {vfm_name: z}}\nrows: [dina]\ncolumns: [dino]\n"
        "metric: ckna\nconditions: [noise]\nweights: {noise: 2}\n"
    )
    with pytest.raises(UserError) as error:
        load_alignment_config(path, [])
    message = str(error.value)
    assert "3 problems" in message and "rows: found 'dina', which is none of the models" in message
    assert "Closest: dino." in message and "metric: found 'ckna'" in message and "Closest: cknna." in message
    assert "conditions: condition 'noise' is not known" in message
    with pytest.raises(UserError, match=r"vfms.dino.layer: unknown key. Closest: layers."):
        load_alignment_config(path, ["rows=[dino]", "metric=cknna", "conditions=[grid]", "weights={}",
                                     "vfms.dino.layer=[1]"])  # fmt: skip
