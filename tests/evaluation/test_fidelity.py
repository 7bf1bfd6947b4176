"""Metrics of sets are torch-fidelity's on the same features; they depend on neither batches nor ranks."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from common.errors import CheckpointError, DataError, UserError
from evaluation.extractors.base import MetricNames
from evaluation.extractors.inception import WEIGHTS_FILE
from evaluation.fidelity import score_sets
from evaluation.generation import Computing
from evaluation.images import to_tensor
from evaluation.quality import Pairs, pair_folders, read_pixels
from evaluation.reconstruction_scores import choose_extractor
from tests.evaluation.conftest import TinyExtractor

CPU = torch.device("cpu")
COUNT = 37


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Pairs:
    """Coarse pictures and noisy copies of them."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for name in ("ref", "pred"):
        (folder / name).mkdir()
    for number in range(COUNT):
        pixels = np.kron(rng.integers(30, 220, (3, 3, 3)), np.ones((6, 6, 1)))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "ref" / f"{number:02d}.png")
        noisy = (pixels + rng.integers(-30, 31, pixels.shape)).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "pred" / f"{number:02d}.png")
    return pair_folders(folder / "ref", folder / "pred")


def scores_of(pairs: Pairs, batch_size: int = 5) -> dict[str, float]:
    return score_sets(pairs, TinyExtractor(), Computing(CPU, batch_size, workers=2)).values


class Pictures(Dataset):
    """What torch-fidelity reads."""

    def __init__(self, folder, names):
        self.paths = [folder / name for name in names]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return to_tensor(read_pixels(self.paths[index]))


class AsFidelityExtractor(FeatureExtractorBase):
    """The tiny extractor behind torch-fidelity's own interface."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.extractor = TinyExtractor()

    def forward(self, images):
        features = self.extractor(images)
        layers = {"pool": features.pool, "logits": features.logits}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return ("pool", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"fid": "pool", "kid": "pool", "isc": "logits"}[metric]

    @staticmethod
    def can_be_compiled():
        return False

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, 16, 16, dtype=torch.uint8)


def test_numbers_are_those_of_torch_fidelity(pairs) -> None:
    torch_fidelity.register_feature_extractor("tiny-for-tests", AsFidelityExtractor)
    expected = torch_fidelity.calculate_metrics(
        input1=Pictures(pairs.pred_dir, pairs.names),
        input2=Pictures(pairs.ref_dir, pairs.names),
        fid=True,
        isc=True,
        kid=True,
        kid_subset_size=COUNT,
        feature_extractor="tiny-for-tests",
        batch_size=5,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    found = scores_of(pairs)
    assert found["efficientnet_lite0_frechet_distance"] == pytest.approx(
        expected["frechet_inception_distance"], abs=1e-6
    )
    assert found["efficientnet_lite0_score_mean"] == pytest.approx(expected["inception_score_mean"], abs=1e-5)
    assert found["efficientnet_lite0_score_std"] == pytest.approx(expected["inception_score_std"], abs=1e-5)
    assert found["efficientnet_lite0_kernel_distance_mean"] == pytest.approx(
        expected["kernel_inception_distance_mean"], abs=1e-5
    )


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_the_batch_size_does_not_change_the_numbers(pairs, batch_size) -> None:
    expected = scores_of(pairs)
    for name, value in scores_of(pairs, batch_size).items():
        assert value == pytest.approx(expected[name], abs=2e-5), name


@pytest.mark.parametrize("ranks", [2, COUNT + 1])
def test_all_ranks_get_the_numbers_of_one(pairs, on_ranks, ranks) -> None:
    expected = scores_of(pairs)
    assert on_ranks(ranks, lambda: scores_of(pairs)) == [expected] * ranks


def test_an_error_of_one_rank_is_raised_on_all(pairs, on_ranks, tmp_path) -> None:
    shutil.copytree(pairs.ref_dir, tmp_path / "ref")
    (tmp_path / "ref" / "07.png").write_bytes(b"not an image")

    def work() -> str:
        with pytest.raises(DataError) as met:
            scores_of(replace(pairs, ref_dir=tmp_path / "ref"))
        return str(met.value)

    assert on_ranks(2, work) == [f"{tmp_path}/ref/07.png: not readable as an image (not an image)."] * 2


def test_images_of_several_sizes_are_refused(pairs, tmp_path) -> None:
    shutil.copytree(pairs.ref_dir, tmp_path / "ref")
    Image.new("RGB", (20, 18)).save(tmp_path / "ref" / "03.png")
    with pytest.raises(
        DataError, match=r"03\.png: found 20 x 18 pixels, expected 18 x 18 as in .*00\.png; .* one size"
    ):
        scores_of(replace(pairs, ref_dir=tmp_path / "ref"))


def test_one_image_is_no_set(pairs) -> None:
    with pytest.raises(DataError, match="at least 2 images, found 1"):
        scores_of(replace(pairs, names=pairs.names[:1]))


def test_few_images_are_told_with_the_numbers(pairs) -> None:
    extractor = TinyExtractor()
    few = replace(pairs, names=pairs.names[:12])
    scores = [score_sets(p, extractor, Computing(CPU, 4)) for p in (few, pairs)]
    assert scores[0].caution.startswith("12 images do not determine a covariance of 12 features")
    assert scores[1].caution is None
    assert scores[1].protocol["images"] == COUNT
    assert scores[1].protocol["weights_sha256"] == extractor.weights_sha256


class WithInceptionNames(TinyExtractor):
    metric_names = MetricNames("fid", "sfid", "inception_score", "kid", "precision", "recall")


def test_of_reconstructions_fid_and_inception_score_are_called_rfid_and_ris(pairs) -> None:
    values = score_sets(pairs, WithInceptionNames(), Computing(CPU, 8)).values
    assert list(values) == ["rfid", "ris_mean", "ris_std", "kid_mean"]
    assert list(values.values()) == pytest.approx(list(scores_of(pairs).values()), abs=2e-5)


def test_the_choice_of_an_extractor(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert choose_extractor("none") is None
    assert choose_extractor("auto").name == "efficientnet_lite0"
    with pytest.raises(UserError, match=r"checkpoints/weights-inception-.*\.pth does not exist.*--inception-weights"):
        choose_extractor("inception")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / WEIGHTS_FILE).write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=WEIGHTS_FILE):  # it is there, so it is taken
        choose_extractor("auto")
