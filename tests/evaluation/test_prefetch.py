"""Prefetched latents: their files, what decides them, and that no interruption shows."""

from __future__ import annotations

import functools
import json
import runpy
import shutil
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.errors import DataError, UserError
from common.files import sha256_of
from data.augment import adm_crop
from data.latents import LatentDataset
from data.name_tensors import unpack_names
from data.reg_latents import open_reg
from evaluation.images import to_tensor
from evaluation.posterior import encode_images
from evaluation.prefetch import reg, shard_files
from evaluation.prefetch.lightningdit import LightningDiTFormat
from evaluation.prefetch.parts import Part, divide
from evaluation.prefetch.reg import RegFolderFormat, RegShardFormat
from evaluation.prefetch.run import PrefetchOptions, prefetch
from tests.data.sample_files import pixels_of, sample, write_tar
from tests.data.sample_files import write_shards as write_samples
from tests.evaluation import prefetch_process
from tests.evaluation.prefetch_process import full_disk, run_tool
from tests.tiny import fill_weights, tiny_values, write_config

CPU = torch.device("cpu")
OPTIONS = PrefetchOptions(resolution=16, batch_size=2, rows_per_file=3)
LIGHTNINGDIT = "preprocess_for_lightningdit/prefetch.py"
REG = "preprocess_for_reg/prefetch.py"


def run(model, data, output_dir, kind=None, **options):
    changed = PrefetchOptions(**{**OPTIONS.__dict__, **options})
    return prefetch(model, data, output_dir, kind or LightningDiTFormat(), changed, CPU)


def hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of all files but the lock."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


def rows(folder: Path) -> dict[str, tuple]:
    """Sample key -> bits of its latents, and its label."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for number, key in enumerate(unpack_names(tensors["names"])):
            z, z_flip = (tensors[name][number].numpy().tobytes() for name in ("latents", "latents_flip"))
            found[key] = (z, z_flip, int(tensors["labels"][number]))
    return found


@pytest.fixture
def data(tmp_path):
    """Two shards of 4 and 5 labelled images of 20 x 24 pixels."""
    write_samples(tmp_path / "data", [4, 5])
    return tmp_path / "data"


@pytest.fixture(scope="module")
def arguments(tiny_encoder, tiny_data, tmp_path_factory) -> list[str]:
    """Those of a prefetch with a real tokenizer in small; only --output-dir is missing."""
    from configs.schema import load_config
    from networks.checkpoint.folder import ModelFolder, encoder_facts, write_model_folder
    from networks.encoders.loading import load_encoder
    from networks.vfm_vae import VFMVAETokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    values = tiny_values(tiny_encoder, tiny_data, folder / "run")
    config = load_config(write_config(values, folder / "config.yaml")).config.tokenizer()
    model = VFMVAETokenizer(config, load_encoder(config.encoder, False))
    fill_weights(model)
    content = ModelFolder(config, model.trainable_parts().state_dict(), None, None, encoder_facts(config, None))
    write_model_folder(folder / "model", content)
    options = ["--batch-size-per-gpu", "3", "--images-per-shard", "4", "--device", "cpu"]
    return ["--data-path", str(tiny_data), "--vae-pth", str(folder / "model"), *options]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory) -> Path:
    """What the LightningDiT command writes if nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    codes, text = run_tool(LIGHTNINGDIT, [*arguments, "--output-dir", str(folder / "out")], folder / "text")
    assert codes == [0], text
    return folder / "out"


@pytest.fixture(scope="module")
def two_ranks(arguments, tmp_path_factory) -> Path:
    """What the same command writes on two ranks."""
    folder = tmp_path_factory.mktemp("two_ranks")
    codes, text = run_tool(LIGHTNINGDIT, [*arguments, "--output-dir", str(folder / "out")], folder / "text", ranks=2)
    assert codes == [0, 0], text
    return folder / "out"


# --- the formats ------------------------------------------------------------------------------------------------------


def test_files_for_lightningdit_have_its_names_tensors_and_statistics(tokenizer, data, tmp_path):
    summary = run(tokenizer, data, tmp_path / "out")
    assert (summary.found, summary.written, summary.kept) == (9, 9, 0)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"latents_rank00_shard{number:03d}.safetensors" for number in range(3)]  # 4, 4, 1: whole batches
    tensors = load_file(tmp_path / "out" / files[0])
    found = {name: (str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in tensors.items()}
    assert found == {
        "latents": ("float32", [4, 3, 4, 4]),
        "latents_flip": ("float32", [4, 3, 4, 4]),
        "labels": ("int64", [4]),
        "names": ("uint8", [4, 5]),
    }
    everything = [load_file(tmp_path / "out" / name) for name in files]
    z = torch.cat([t["latents"] for t in everything] + [t["latents_flip"] for t in everything]).double()
    statistics = torch.load(tmp_path / "out" / "latents_stats.pt", weights_only=True)
    for name, expected in (("mean", z.mean((0, 2, 3))), ("std", z.std((0, 2, 3)))):
        assert statistics[name].shape == (1, 3, 1, 1) and statistics[name].dtype == torch.float32
        assert torch.allclose(statistics[name].flatten(), expected.float(), rtol=1e-6)


def test_a_stored_latent_is_that_of_the_adm_crop_with_noise_of_its_key(tokenizer, data, tmp_path):
    run(tokenizer, data, tmp_path / "sample", LightningDiTFormat(seed=5))
    run(tokenizer, data, tmp_path / "mode", LightningDiTFormat("mode"))
    crop = to_tensor(adm_crop(Image.fromarray(pixels_of("0_000")), 16))[None]
    stored, mean = (load_file(next((tmp_path / k).glob("*shard000*"))) for k in ("sample", "mode"))
    assert torch.equal(stored["latents"][0], encode_images(tokenizer, crop, ["0_000"], "sample", 5).z[0])
    flipped = encode_images(tokenizer, crop.flip(-1), ["0_000"], "mode", 0).z[0]
    assert torch.equal(mean["latents_flip"][0], flipped)
    noise, noise_flip = stored["latents"] - mean["latents"], stored["latents_flip"] - mean["latents_flip"]
    correlation = torch.corrcoef(torch.stack([noise.flatten(), noise_flip.flatten()]))[0, 1]
    assert correlation.abs() < 0.3  # 192 pairs: the two draws are independent of each other


def test_statistics_of_the_references_rule_leave_out_mirrored_images(tokenizer, data, tmp_path):
    run(tokenizer, data, tmp_path / "out", LightningDiTFormat(stats="sample10k"))
    z = torch.cat([load_file(path)["latents"] for path in sorted((tmp_path / "out").glob("*.safetensors"))])
    statistics = torch.load(tmp_path / "out" / "latents_stats.pt", weights_only=True)
    assert torch.allclose(statistics["std"], z.std((0, 2, 3), keepdim=True), atol=1e-6)
    assert json.loads((tmp_path / "out" / "index.json").read_text())["statistics"]["rule"] == "sample10k"
    run(tokenizer, data, tmp_path / "out", LightningDiTFormat(stats="all"))  # the rule may change afterwards
    assert json.loads((tmp_path / "out" / "index.json").read_text())["statistics"]["values_per_channel"] == 2 * 9 * 16


def test_latents_can_be_stored_in_half_precision(tokenizer, data, tmp_path):
    run(tokenizer, data, tmp_path / "bf16", LightningDiTFormat(dtype="bf16"))
    run(tokenizer, data, tmp_path / "fp32")
    assert load_file(next((tmp_path / "bf16").glob("*shard000*")))["latents"].dtype == torch.bfloat16
    half, full = (LatentDataset(tmp_path / name, latent_norm=False).item(3, 1.0).z for name in ("bf16", "fp32"))
    assert half.dtype == torch.float32 and torch.equal(half, full.bfloat16().float())


def test_files_for_reg_have_its_folders_moments_and_labels(tokenizer, data, tmp_path):
    run(tokenizer, data, tmp_path / "out", RegFolderFormat())
    latents, images = tmp_path / "out" / "vae_latents", tmp_path / "out" / "images"
    moments = np.load(latents / "1" / "1_002.npy")
    assert moments.dtype == np.float32 and moments.shape == (6, 4, 4)
    assert np.allclose(moments[3:], np.exp(0.5 * -3.0))
    crop = adm_crop(Image.fromarray(pixels_of("1_002")), 16)
    assert np.array_equal(np.asarray(Image.open(images / "1" / "1_002.png")), crop)
    labels = [[f"{s}/{s}_{n:03d}", s] for s, size in ((0, 4), (1, 5)) for n in range(size)]
    for folder, suffix in ((latents, ".npy"), (images, ".png")):
        for name in ("dataset.json", "dataset_rank0.json"):
            expected = {"labels": [[f"{stem}{suffix}", label] for stem, label in labels]}
            assert json.loads((folder / name).read_text()) == expected
    assert sorted(path.name for path in latents.glob("*.pt")) == ["latents_stats.pt"]


@pytest.mark.parametrize("stats", ["all", "sample10k"])
def test_both_forms_for_reg_give_the_same_items_and_statistics(stats, tokenizer, data, tmp_path):
    run(tokenizer, data, tmp_path / "folder", RegFolderFormat(stats=stats))
    run(tokenizer, data, tmp_path / "shards", RegShardFormat(stats=stats))
    a, b = open_reg(tmp_path / "folder"), open_reg(tmp_path / "shards")
    assert len(a) == len(b) == 9
    for index in range(9):
        first, second = a.item(index), b.item(index)
        assert a.name(index) == b.name(index) and first.label == second.label
        assert torch.equal(first.image, second.image) and torch.equal(first.moments, second.moments)
    assert torch.equal(a.normalisation().mean, b.normalisation().mean)
    assert torch.equal(a.normalisation().std, b.normalisation().std)
    spread = torch.stack([a.moments(index)[:3] for index in range(9)]).var((0, 2, 3)) + np.exp(-3.0)
    assert torch.allclose(a.normalisation().std.flatten().square(), spread, rtol=0.2)


def test_reg_needs_a_posterior(tokenizer, data, tmp_path):
    tokenizer.encode = lambda images, noise: types.SimpleNamespace(z=images, posterior=None)
    with pytest.raises(UserError, match="this tokenizer is discrete"):
        run(tokenizer, data, tmp_path / "out", RegFolderFormat())


# --- the division -----------------------------------------------------------------------------------------------------


def test_shares_are_equal_and_whole():
    parts = divide(23, ranks=3, per_part=4)
    covered = [sample for part in parts for sample in range(part.start, part.stop)]
    assert covered == list(range(23))
    assert [part.name for part in parts][:3] == ["rank00_shard000", "rank00_shard001", "rank01_shard000"]
    assert divide(23, 3, 4, max_per_rank=5)[1:3] == [Part(0, 1, 4, 5), Part(1, 0, 7, 11)]


def test_two_ranks_store_the_same_rows_as_one(undisturbed, two_ranks):
    assert len(rows(undisturbed)) == 20 and rows(undisturbed) == rows(two_ranks)
    assert [path.name[:14] for path in sorted(two_ranks.glob("*.safetensors"))] == ["latents_rank00"] * 2 + [
        "latents_rank01"
    ] * 2
    means = [torch.load(folder / "latents_stats.pt", weights_only=True)["mean"] for folder in (undisturbed, two_ranks)]
    assert torch.allclose(*means, rtol=1e-6)


def test_one_process_completes_what_two_ranks_began(arguments, two_ranks, tmp_path):
    shutil.copytree(two_ranks, tmp_path / "out")
    for name in ("latents_rank01_shard000.safetensors", "progress/rank00_shard001.json"):
        (tmp_path / "out" / name).unlink()
    codes, text = run_tool(LIGHTNINGDIT, [*arguments, "--output-dir", str(tmp_path / "out")], tmp_path / "text")
    assert codes == [0] and "2 of 4 parts are there already" in text
    assert hashes(tmp_path / "out") == hashes(two_ranks)


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [prefetch_process.die_in_the_second_shard, prefetch_process.die_before_the_second_record]
)
def test_a_killed_prefetch_ends_with_the_files_of_an_undisturbed_one(fault, arguments, undisturbed, tmp_path):
    command = [*arguments, "--output-dir", str(tmp_path / "out")]
    codes, _ = run_tool(LIGHTNINGDIT, command, tmp_path / "text", fault=fault)
    assert codes == [-9]
    with pytest.raises(DataError, match="has not ended; start the same command again"):
        LatentDataset(tmp_path / "out")
    before = (tmp_path / "out" / "latents_rank00_shard000.safetensors").stat().st_mtime_ns
    codes, text = run_tool(LIGHTNINGDIT, command, tmp_path / "text")
    assert codes == [0] and "1 of 4 parts are there already" in text
    assert (tmp_path / "out" / "latents_rank00_shard000.safetensors").stat().st_mtime_ns == before
    assert hashes(tmp_path / "out") == hashes(undisturbed)
    assert not list((tmp_path / "out").rglob(".*.partial"))


def test_a_killed_prefetch_for_reg_ends_with_the_files_of_an_undisturbed_one(arguments, tmp_path):
    command = [*arguments, "--output-dir"]
    assert run_tool(REG, [*command, str(tmp_path / "whole")], tmp_path / "text")[0] == [0]
    fault = prefetch_process.die_before_the_second_record
    assert run_tool(REG, [*command, str(tmp_path / "out")], tmp_path / "text", fault=fault)[0] == [-9]
    assert run_tool(REG, [*command, str(tmp_path / "out")], tmp_path / "text")[0] == [0]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("tool, options", [(LIGHTNINGDIT, []), (REG, []), (REG, ["--format", "safetensors"])])
def test_a_prefetch_that_is_killed_again_and_again_ends_with_the_same_files(tool, options, arguments, tmp_path):
    command = [*arguments, *options, "--images-per-shard", "3", "--output-dir"]
    for folder in ("first", "whole"):  # the first run of all pays for the imports
        started = time.monotonic()
        assert run_tool(tool, [*command, str(tmp_path / folder)], tmp_path / "text")[0] == [0]
        seconds = time.monotonic() - started
    codes = []
    for attempt in range(40):
        # Longer every time, so that it ends on a machine that has become busy.
        fault = functools.partial(prefetch_process.die_after, seconds * 0.3 * 1.15**attempt)
        codes += run_tool(tool, [*command, str(tmp_path / "out")], tmp_path / "text", fault=fault)[0]
        if codes[-1] == 0:
            break
    assert codes[-1] == 0 and codes.count(-9) >= 1 and set(codes) == {0, -9}
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_a_file_that_the_system_does_not_let_grow_stops_the_command_with_an_error(arguments, undisturbed, tmp_path):
    command = [*arguments, "--output-dir", str(tmp_path / "out")]
    fault = prefetch_process.forbid_large_files
    codes, text = run_tool(LIGHTNINGDIT, command, tmp_path / "text", fault=fault)
    assert codes == [2] and "cannot be written" in text and "File too large" in text and "Traceback" not in text
    assert run_tool(LIGHTNINGDIT, command, tmp_path / "text")[0] == [0]
    assert hashes(tmp_path / "out") == hashes(undisturbed)


@pytest.mark.parametrize("kind, module", [(LightningDiTFormat(), shard_files), (RegFolderFormat(), reg)])
def test_a_full_disk_loses_nothing(kind, module, tokenizer, data, tmp_path, monkeypatch):
    run(tokenizer, data, tmp_path / "whole", kind)
    message = "No space left on device.*What is finished is kept: make room, and start the same command again"
    with full_disk(monkeypatch, module, after=1), pytest.raises(DataError, match=message):
        run(tokenizer, data, tmp_path / "out", kind)
    run(tokenizer, data, tmp_path / "out", kind)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_a_finished_folder_is_left_as_it_is(tokenizer, data, tmp_path):
    run(tokenizer, data, tmp_path / "out")
    before = hashes(tmp_path / "out")
    tokenizer.encode = None  # nothing may be encoded again
    assert run(tokenizer, data, tmp_path / "out").kept == 9
    assert hashes(tmp_path / "out") == before


def test_another_plan_in_the_same_folder_is_refused(tokenizer, data, tmp_path):
    run(tokenizer, data, tmp_path / "out")
    before = hashes(tmp_path / "out")
    with pytest.raises(DataError, match=r"begun with another plan \(seed: found 0, this run has 1\)"):
        run(tokenizer, data, tmp_path / "out", LightningDiTFormat(seed=1))
    with pytest.raises(DataError, match="format: found lightningdit, this run has reg"):
        run(tokenizer, data, tmp_path / "out", RegFolderFormat())
    with pytest.raises(DataError, match="batch_size_per_rank: found 2, this run has 4"):
        run(tokenizer, data, tmp_path / "out", batch_size=4)
    write_samples(data, [4, 6])
    with pytest.raises(DataError, match=r"inputs: found .*'samples': 9.*this run has .*'samples': 10"):
        run(tokenizer, data, tmp_path / "out")
    write_samples(data, [4, 5])
    tokenizer.gain.data.mul_(2)
    with pytest.raises(DataError, match="weights_sha256: found"):
        run(tokenizer, data, tmp_path / "out")
    assert hashes(tmp_path / "out") == before


def test_files_of_unknown_origin_are_refused(tokenizer, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "latents_rank00_shard000.safetensors").touch()
    with pytest.raises(DataError, match=r"holds latents_rank00_shard000\.safetensors, but no index\.json"):
        run(tokenizer, data, tmp_path / "out")


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_images_are_counted_by_kind_and_shard(tokenizer, data, tmp_path):
    run(tokenizer, data, tmp_path / "whole")
    good = (data / "00.tar").read_bytes()
    write_samples(data, [4, 5], bad={"0_001": b"no image", "1_004": b""})
    summary = run(tokenizer, data, tmp_path / "out", max_skip_fraction=0.5)
    assert (summary.found, summary.written) == (9, 7)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["counts"]["skipped"] == {"not an image": {"00.tar": 1, "01.tar": 1}}
    whole = rows(tmp_path / "whole")
    del whole["0_001"], whole["1_004"]
    assert rows(tmp_path / "out") == whole and good


def test_too_many_bad_images_are_an_error_that_a_larger_fraction_settles(tokenizer, data, tmp_path):
    write_samples(data, [4, 5], bad={"0_001": b"no image"})
    with pytest.raises(DataError, match=r"1 of 9 samples had to be left out.*Left out: 00\.tar: not an image \(1\)"):
        run(tokenizer, data, tmp_path / "out")
    assert run(tokenizer, data, tmp_path / "out", max_skip_fraction=0.2).kept == 8


def test_the_expected_count_is_checked(tokenizer, data, tmp_path):
    with pytest.raises(DataError, match="--expected-count: the shards hold 9 labelled images, expected 10"):
        run(tokenizer, data, tmp_path / "out", expected_count=10)
    write_samples(data, [4, 5], bad={"0_001": b"no image"})
    with pytest.raises(DataError, match="--expected-count: 8 images are written, expected 9"):
        run(tokenizer, data, tmp_path / "out", expected_count=9, max_skip_fraction=1)
    assert run(tokenizer, data, tmp_path / "out", expected_count=8, max_skip_fraction=1).written == 8


def test_images_without_labels_are_an_error_that_says_what_is_missing(tokenizer, tmp_path):
    write_tar(tmp_path / "data" / "00.tar", sample("a_1", label=None))
    with pytest.raises(
        DataError, match=r"^/\S+: no sample is left.*00\.tar: a_1: no label.*needs an image and its class index"
    ):
        run(tokenizer, tmp_path / "data", tmp_path / "out")
    write_tar(tmp_path / "data" / "00.tar", [*sample("a_1", label=None), *sample("a_2", 3)])
    summary = run(tokenizer, tmp_path / "data", tmp_path / "out", max_skip_fraction=0.5)
    assert [str(skip) for skip in summary.skips] == ["00.tar: a_1: no label"] and summary.written == 1


def test_a_latent_that_is_not_finite_stops_the_run_and_names_its_image(tokenizer, data, tmp_path):
    encode = tokenizer.encode

    def overflow(images, noise):
        latent = encode(images, noise)
        latent.z[1, 0, 0, 0] = torch.inf
        return latent

    tokenizer.encode = overflow
    with pytest.raises(DataError, match="the latent of the image 0_001 holds values that are not finite"):
        run(tokenizer, data, tmp_path / "out")


def test_missing_and_empty_inputs_are_named(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"nothing: does not exist; expected a folder of \*\.tar shards"):
        run(tokenizer, tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"Expected \*\.tar shards"):
        run(tokenizer, tmp_path / "data", tmp_path / "out")
    write_samples(tmp_path / "bad", [1], bad={"0_000": b""})
    with pytest.raises(DataError, match="none of 1 images can be used"):
        run(tokenizer, tmp_path / "bad", tmp_path / "out", max_skip_fraction=1)


def test_a_key_that_leads_out_of_the_folder_is_refused(tokenizer, tmp_path):
    write_tar(tmp_path / "data" / "00.tar", sample("../x_1", 0))
    with pytest.raises(DataError, match="would name a file outside the output folder"):
        run(tokenizer, tmp_path / "data", tmp_path / "out", RegFolderFormat())


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_command_reports_counts_and_what_was_left_out(tokenizer, data, tmp_path, monkeypatch, capsys):
    checkpoint = types.SimpleNamespace(load_tokenizer=lambda *args, **kwargs: tokenizer)
    monkeypatch.setitem(sys.modules, "networks.checkpoint", checkpoint)
    write_samples(data, [4, 5], bad={"0_001": b"no image"})
    out = str(tmp_path / "out")
    arguments = ["--data-path", str(data), "--output-dir", out, "--vae-pth", "x", "--device", "cpu"]
    for tool in (LIGHTNINGDIT, REG):
        main = runpy.run_path(str(prefetch_process.TOOLS / tool))["main"]
        monkeypatch.setattr(sys, "argv", ["prefetch.py", *arguments, "--max-skip-fraction", "0.5"])
        main()
        captured = capsys.readouterr()
        assert captured.out == f"{out}: 8 of 9 images\n"
        assert "left out: 00.tar: not an image (1)" in captured.err
        arguments[3] = out = str(tmp_path / "reg")
    for wrong, text in ((["--seed", "x"], "invalid int"), (["--images-per-shard", "0"], "expected at least 1")):
        monkeypatch.setattr(sys, "argv", ["prefetch.py", *arguments, *wrong])
        with pytest.raises(SystemExit):
            main()
        assert text in capsys.readouterr().err
