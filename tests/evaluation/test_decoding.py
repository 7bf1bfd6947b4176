import json
import os
import runpy
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.errors import DataError, UserError
from common.value_range import signed_to_unit, unit_to_uint8
from evaluation.decoding import DecodePlan, DecodeTargets, decode_folder
from evaluation.image_batches import save_as_npz
from tests.faults.ranks import run_ranks

CPU = torch.device("cpu")
TOOLS = Path(__file__).parents[2] / "tools" / "decode"
ROWS = (3, 5, 2)


@pytest.fixture
def latents():
    return torch.randn(sum(ROWS), 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def shards(tmp_path, latents):
    folder = tmp_path / "samples"
    folder.mkdir()
    for number, part in enumerate(latents.split(ROWS)):
        labels = torch.full((len(part),), number, dtype=torch.int32)
        save_file(
            {"latents": part.contiguous(), "labels": labels}, folder / f"samples_rank00_shard{number:03d}.safetensors"
        )
    return folder


def run(model, shards, output_dir, batch_size=4, npz=None, pngs=True, skip_existing=True, plan=None, **options):
    return decode_folder(
        model,
        DecodePlan(shards, **(plan or {})),
        DecodeTargets(output_dir, pngs, npz, skip_existing),
        batch_size=batch_size,
        device=CPU,
        images_per_part=3,
        **options,
    )


def pngs_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.fixture
def whole(tokenizer, shards, tmp_path):
    run(tokenizer, shards, tmp_path / "whole", npz=tmp_path / "whole.npz")
    return pngs_of(tmp_path / "whole")


def expected_images(tokenizer, latents):
    return unit_to_uint8(signed_to_unit(tokenizer.decode(latents).reconstruction.detach())).permute(0, 2, 3, 1).numpy()


# --- what is written -------------------------------------------------------------------------------------------------


def test_images_are_the_decoded_latents_in_order(tokenizer, shards, latents, whole, tmp_path):
    expected = expected_images(tokenizer, latents)
    assert sorted(whole) == [f"rank00_{i:06d}.png" for i in range(10)]
    for i, name in enumerate(sorted(whole)):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "whole" / name)), expected[i])
    with np.load(tmp_path / "whole.npz") as arrays:
        assert list(arrays) == ["arr_0"] and arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], expected)
    assert not (tmp_path / "whole" / "npz_parts").exists()


def test_the_npz_file_of_decoding_equals_that_of_the_png_files(whole, tmp_path):
    save_as_npz(tmp_path / "whole", tmp_path / "packed.npz", 10)
    assert (tmp_path / "packed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_labels_and_manifest_are_written_too(tokenizer, whole, tmp_path):
    labels = json.loads((tmp_path / "whole" / "labels.json").read_text())
    assert [labels[name]["label_id"] for name in sorted(whole)] == [0] * 3 + [1] * 5 + [2] * 2
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["counts"]["decoded"] == 10 and manifest["images"] == 10
    assert len(manifest["weights_sha256"]) == len(manifest["samples_sha256"]) == 64


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_files_do_not_depend_on_the_batch_size(batch_size, tokenizer, shards, whole, tmp_path):
    run(tokenizer, shards, tmp_path / "out", batch_size, tmp_path / "out.npz")
    assert pngs_of(tmp_path / "out") == whole
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_every_batch_has_the_full_size(tokenizer, shards, tmp_path, monkeypatch):
    sizes = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda z, c=None: sizes.append(len(z)) or decode(z, c))
    run(tokenizer, shards, tmp_path / "out", 4)
    assert sizes == [4, 4, 4]


def test_two_ranks_write_the_files_of_one(tokenizer, shards, whole, tmp_path):
    def work(rank):
        return vars(run(tokenizer, shards, tmp_path / "out", 4, tmp_path / "out.npz"))["decoded"]

    assert run_ranks(2, work, tmp_path) == [10, 10]
    assert pngs_of(tmp_path / "out") == whole
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_an_old_numbering_is_reproduced_whatever_the_ranks(tokenizer, shards, whole, tmp_path):
    run(tokenizer, shards, tmp_path / "out", plan={"numbering_ranks": 2})
    found = pngs_of(tmp_path / "out")
    assert sorted(found)[5:] == [f"rank01_{i:06d}.png" for i in range(5)]
    assert found["rank01_000000.png"] == whole["rank00_000003.png"]
    assert found["rank00_000003.png"] == whole["rank00_000008.png"]


def test_half_precision_latents_are_decoded_in_fp32(tokenizer, latents, tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    save_file({"latents": latents.bfloat16()}, folder / "a.safetensors")
    run(tokenizer, folder, tmp_path / "out", npz=tmp_path / "out.npz", pngs=False)
    expected = expected_images(tokenizer, latents.bfloat16().float())
    assert np.array_equal(np.load(tmp_path / "out.npz")["arr_0"], expected)
    assert pngs_of(tmp_path / "out") == {} and not (tmp_path / "out" / "labels.json").exists()


# --- interrupted runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pngs", [True, False])
def test_a_killed_run_goes_on_to_the_same_files(pngs, tokenizer, shards, whole, tmp_path, monkeypatch):
    out, npz = tmp_path / "out", tmp_path / "out.npz"
    if (child := os.fork()) == 0:
        calls = []
        decode = tokenizer.decode

        def dying(z, c=None):
            calls.append(None)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return decode(z, c)

        tokenizer.decode = dying
        run(tokenizer, shards, out, 2, npz, pngs, workers=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not npz.exists() and json.loads((out / "manifest.json").read_text())["status"] == "running"
    (out / ".rank00_000009.png.killed.partial").write_bytes(b"half")
    summary = run(tokenizer, shards, out, 2, npz, pngs)
    assert 0 < summary.decoded <= 10 and summary.decoded + summary.kept == 10
    assert pngs_of(out) == (whole if pngs else {})
    assert npz.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert list(out.glob(".*.partial")) == []


def test_a_finished_run_is_not_done_again(tokenizer, shards, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "decode", None)
    summary = run(tokenizer, shards, tmp_path / "whole", npz=tmp_path / "whole.npz")
    assert (summary.decoded, summary.kept) == (0, 10)
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["npz"]["bytes"] == (tmp_path / "whole.npz").stat().st_size


def test_only_what_is_missing_is_decoded(tokenizer, shards, whole, tmp_path):
    (tmp_path / "whole" / "rank00_000004.png").unlink()
    assert run(tokenizer, shards, tmp_path / "whole", npz=tmp_path / "whole.npz").decoded == 1
    assert pngs_of(tmp_path / "whole") == whole
    (tmp_path / "whole.npz").unlink()
    content = run(tokenizer, shards, tmp_path / "whole", npz=tmp_path / "whole.npz")
    assert content.decoded == 10 and (tmp_path / "whole.npz").is_file()


def test_files_and_parts_that_are_missing_in_different_places_are_completed(
    tokenizer, shards, whole, tmp_path, monkeypatch
):
    out, npz = tmp_path / "out", tmp_path / "out.npz"
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.decode_outputs.NpzParts.finish", lambda self: None)
        with pytest.raises(FileNotFoundError):  # the run ends before the parts are joined
            run(tokenizer, shards, out, npz=npz)
    (out / "rank00_000005.png").unlink()  # its part, 3 to 5, is there
    (out / "npz_parts" / "000006-000008.npy").unlink()
    assert run(tokenizer, shards, out, npz=npz).decoded == 4
    assert pngs_of(out) == whole and npz.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_an_npz_file_of_fewer_images_is_not_taken_for_a_finished_one(tokenizer, shards, whole, tmp_path):
    options = {"npz": tmp_path / "out.npz", "pngs": False}
    run(tokenizer, shards, tmp_path / "out", plan={"max_images_per_rank": 4}, **options)
    assert np.load(tmp_path / "out.npz")["arr_0"].shape[0] == 4
    run(tokenizer, shards, tmp_path / "out", **options)
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_files_of_another_model_or_other_latents_are_refused(tokenizer, shards, latents, whole, tmp_path):
    (tmp_path / "whole" / "rank00_000000.png").unlink()
    tokenizer.gain.data.mul_(0.5)
    with pytest.raises(DataError, match=r"manifest\.json: weights_sha256: found .* pass --no-skip-existing"):
        run(tokenizer, shards, tmp_path / "whole")
    tokenizer.gain.data.mul_(2)
    save_file({"latents": latents[:2] + 1}, shards / "samples_rank00_shard002.safetensors")
    with pytest.raises(DataError, match="samples_sha256: found"):
        run(tokenizer, shards, tmp_path / "whole")
    assert run(tokenizer, shards, tmp_path / "whole", skip_existing=False).decoded == 10
    assert pngs_of(tmp_path / "whole")["rank00_000009.png"] != whole["rank00_000009.png"]


def test_foreign_images_are_refused(tokenizer, shards, whole, tmp_path):
    with pytest.raises(DataError, match=r"holds 8 PNG files that this run does not write, such as rank00_000002"):
        run(tokenizer, shards, tmp_path / "whole", plan={"max_images_per_rank": 2})


# --- broken input ----------------------------------------------------------------------------------------------------


def test_latents_with_wrong_channels_are_named_before_any_work(tokenizer, shards, tmp_path):
    for path in shards.iterdir():
        save_file({"latents": torch.zeros(2, 32, 4, 4)}, path)
    with pytest.raises(
        DataError, match=r"shard000\.safetensors: latents: found 32 channels.*expected 3, those of this"
    ):
        run(tokenizer, shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_latents_that_are_not_finite_are_named(tokenizer, shards, latents, tmp_path):
    latents[4, 0, 0, 0] = torch.nan
    save_file({"latents": latents[3:8].contiguous()}, shards / "samples_rank00_shard001.safetensors")
    with pytest.raises(DataError, match=r"shard001\.safetensors: latents: row 1 holds values that are not finite"):
        run(tokenizer, shards, tmp_path / "out")


def test_a_bad_shard_stops_the_run_or_is_left_out(tokenizer, shards, whole, tmp_path):
    (shards / "samples_rank00_shard001.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"shard001\.safetensors: cannot be read"):
        run(tokenizer, shards, tmp_path / "out")
    summary = run(tokenizer, shards, tmp_path / "out", plan={"skip_bad_shards": True})
    assert summary.images == 5 and "shard001" in summary.problems[0]
    assert pngs_of(tmp_path / "out")["rank00_000003.png"] == whole["rank00_000008.png"]


def test_a_target_is_needed():
    with pytest.raises(UserError, match="nothing to write"):
        DecodeTargets(Path("x"), pngs=False)


# --- conditional decoders --------------------------------------------------------------------------------------------


def conditional(tokenizer, label_type):
    tokenizer.config.conditional = True
    tokenizer.config.decoder = types.SimpleNamespace(label_type=label_type, label_dim=3)
    given = []
    decode = tokenizer.decode
    tokenizer.decode = lambda z, c=None: given.append(c) or decode(z)
    return given


def test_decoders_of_classes_get_the_labels_of_the_shards(tokenizer, shards, tmp_path):
    given = conditional(tokenizer, "cls2id")
    run(tokenizer, shards, tmp_path / "out", 5)
    assert torch.cat(given).argmax(1).tolist() == [0] * 3 + [1] * 5 + [2] * 2


def test_decoders_of_class_texts_get_texts_and_say_what_is_missing(tokenizer, shards, tmp_path):
    given = conditional(tokenizer, "cls2text")
    with pytest.raises(UserError, match="--class-index-json: missing"):
        run(tokenizer, shards, tmp_path / "out")
    with pytest.raises(
        DataError, match=r"shard002\.safetensors: labels: row 0: found 2, expected one of the 2 classes"
    ):
        run(tokenizer, shards, tmp_path / "out", class_texts={0: "a", 1: "b"})
    run(tokenizer, shards, tmp_path / "out", 5, class_texts={0: "a", 1: "b", 2: "c"})
    assert given == [["a", "a", "a", "b", "b"], ["b", "b", "b", "c", "c"]]
    conditional(tokenizer, "text")
    with pytest.raises(UserError, match="conditional on free texts"):
        run(tokenizer, shards, tmp_path / "out")


# --- packing ---------------------------------------------------------------------------------------------------------


def write_images(folder, count, side=6, mode="RGB"):
    folder.mkdir(exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).convert(mode).save(folder / f"{i:03d}.png")
    return images


def test_packing_takes_the_first_images_by_name_or_a_seeded_order(tmp_path):
    images = write_images(tmp_path / "images", 7)
    save_as_npz(tmp_path / "images", tmp_path / "a.npz", 4)
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], images[:4])
    for name in ("b.npz", "c.npz"):
        save_as_npz(tmp_path / "images", tmp_path / name, 7, seed=1)
    shuffled = np.load(tmp_path / "b.npz")["arr_0"]
    assert np.array_equal(shuffled, np.load(tmp_path / "c.npz")["arr_0"]) and not np.array_equal(shuffled, images)
    assert sorted(image.tobytes() for image in shuffled) == sorted(image.tobytes() for image in images)


def test_packing_converts_to_rgb_and_refuses_what_does_not_fit(tmp_path):
    write_images(tmp_path / "grey", 3, mode="L")
    save_as_npz(tmp_path / "grey", tmp_path / "grey.npz", 3)
    assert np.load(tmp_path / "grey.npz")["arr_0"].shape == (3, 6, 6, 3)
    with pytest.raises(DataError, match=r"grey: found 3 images, expected at least 4 \(--num\)"):
        save_as_npz(tmp_path / "grey", tmp_path / "more.npz", 4)
    Image.new("RGB", (5, 6)).save(tmp_path / "grey" / "zz.png")
    with pytest.raises(DataError, match=r"zz\.png: found 5 x 6 pixels, expected 6 x 6"):
        save_as_npz(tmp_path / "grey", tmp_path / "more.npz", 4)
    (tmp_path / "grey" / "001.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"001\.png: not readable as an image"):
        save_as_npz(tmp_path / "grey", tmp_path / "more.npz", 3)
    assert [path.name for path in tmp_path.glob("*more*")] == []


# --- commands --------------------------------------------------------------------------------------------------------


def command(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(TOOLS / name))["main"]()


def test_the_commands_decode_and_pack(tokenizer, shards, whole, tmp_path, monkeypatch, capsys):
    checkpoint = types.SimpleNamespace(load_tokenizer=lambda *args, **kwargs: tokenizer)
    monkeypatch.setitem(sys.modules, "networks.checkpoint", checkpoint)
    arguments = ["--input-dir", shards, "--output-dir", tmp_path / "out", "--vae-pth", "x", "--device", "cpu"]
    assert command(monkeypatch, "decode_latents_to_images.py", *arguments) == 0
    assert "10 images decoded" in capsys.readouterr().out and pngs_of(tmp_path / "out") == whole
    assert command(monkeypatch, "decode_latents_to_images.py", *arguments) == 0
    assert "0 images decoded in" in capsys.readouterr().out
    packing = ["--input-dir", tmp_path / "out", "--output-npz", tmp_path / "samples.npz", "--num", 10]
    command(monkeypatch, "save_images_as_npz.py", *packing)
    assert (tmp_path / "samples.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    (shards / "samples_rank00_shard000.safetensors").write_bytes(b"")
    skipping = [*arguments, "--skip-bad-shards", "--no-skip-existing", "--no-png", "--output-npz", tmp_path / "b.npz"]
    with pytest.raises(DataError, match="holds 10 PNG files"):
        command(monkeypatch, "decode_latents_to_images.py", *skipping)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("decode_latents_to_images.py", ["--no-png"], "--no-png: nothing to write; give --output-npz"),
        ("decode_latents_to_images.py", ["--world-size", "0"], "--world-size: found 0, expected at least 1"),
        ("decode_latents_to_images.py", ["--output-npz", "x.zip"], "found x.zip, expected a name that ends in .npz"),
        ("save_images_as_npz.py", ["--output-npz", "x.npz", "--num", "0"], "--num: found 0, expected at least 1"),
    ],
)
def test_wrong_arguments_are_named(name, arguments, message, monkeypatch, capsys):
    required = ["--input-dir", "x"] + (["--output-dir", "y", "--vae-pth", "z"] if "images.py" in name else [])
    with pytest.raises(SystemExit):
        command(monkeypatch, name, *required, *arguments)
    assert message in capsys.readouterr().err
