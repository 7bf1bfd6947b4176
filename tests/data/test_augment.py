"""Image transforms: the published numbers, and the operations one by one."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from data.augment import (
    CenterADMCrop,
    CenterSquareCrop,
    RandomADMCrop,
    RandomColors,
    RandomHorizontalFlip,
    RandomSquareCrop,
    adm_crop,
    adm_resize,
    center_square_crop,
    training_transform,
)
from tests.data.sample_files import pixels_of

GOLDEN = Path(__file__).parents[1] / "golden" / "training_data"
FACTS = json.loads(GOLDEN.with_suffix(".json").read_text())
TENSORS = load_file(GOLDEN.with_suffix(".safetensors"))


@pytest.mark.parametrize("row", range(len(FACTS["augment"])))
def test_augmentation_is_the_published_one(row):
    transform = training_transform(FACTS["resolution"], data_augmentation=True, color_augmentation=False)
    found = transform(TENSORS["img_hwc"], random.Random(FACTS["augment"][row]["python_seed"]))
    assert np.abs(found.transpose(2, 0, 1).astype(int) - TENSORS[f"aug_{row}"]).max() <= 1


def test_centre_crop_is_the_published_one():
    found = CenterSquareCrop(32)(TENSORS["img_hwc"], random.Random(0))
    assert np.abs(found.transpose(2, 0, 1).astype(int) - TENSORS["center_32"]).max() <= 1
    assert np.array_equal(found, center_square_crop(TENSORS["img_hwc"], 32))


def test_without_augmentation_nothing_is_drawn():
    draws = random.Random(3)
    training_transform(8, data_augmentation=False, color_augmentation=False)(pixels_of("a"), draws)
    assert draws.random() == random.Random(3).random()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (2, 2)])
def test_tiny_images_are_cropped_and_enlarged(shape):
    for seed in range(5):
        for crop in (RandomSquareCrop(8), CenterSquareCrop(8), RandomADMCrop(8), CenterADMCrop(8)):
            assert crop(pixels_of("a", *shape), random.Random(seed)).shape == (8, 8, 3)


class Recorder(random.Random):
    """Remembers the bounds of the draws, and gives what it is told."""

    def __init__(self, *answers: int):
        super().__init__(0)
        self.answers, self.bounds = list(answers), []

    def randint(self, low: int, high: int) -> int:
        self.bounds.append((low, high))
        return self.answers.pop(0)


def test_random_adm_crop_draws_the_shorter_side_then_a_place():
    image = pixels_of("a", 60, 90)
    draws = Recorder(22, 2, 11)
    found = RandomADMCrop(20)(image, draws)
    halved = Image.fromarray(image).resize((45, 30), Image.Resampling.BOX)  # 60 >= 2 * 22, 30 is not
    resized = np.asarray(halved.resize((33, 22), Image.Resampling.BICUBIC))
    assert draws.bounds == [(20, 25), (0, 2), (0, 13)]
    assert np.array_equal(found, resized[2:22, 11:31])


def test_adm_shorter_sides_are_those_of_the_published_resolution():
    draws = Recorder(420, 84, 84)
    RandomADMCrop(336)(pixels_of("a", 20, 20), draws)
    assert draws.bounds == [(336, 420), (0, 84), (0, 84)]


@pytest.mark.parametrize(
    ("size", "shorter", "expected"), [((100, 64), 32, (50, 32)), ((99, 63), 32, (50, 32)), ((7, 5), 10, (14, 10))]
)
def test_adm_resize_halves_only_what_is_twice_too_large_and_rounds(size, shorter, expected):
    assert adm_resize(Image.new("RGB", size), shorter).size == expected


def test_adm_crops_replace_the_square_ones_and_the_flip_stays():
    image = pixels_of("a", 40, 50)
    plain = training_transform(16, data_augmentation=False, color_augmentation=False, crop="adm")
    assert np.array_equal(plain(image, random.Random(0)), adm_crop(Image.fromarray(image), 16))
    random_crop = training_transform(16, data_augmentation=True, color_augmentation=False, crop="adm")
    assert random_crop.ops == (RandomADMCrop(16), RandomHorizontalFlip())
    assert plain.ops == (CenterADMCrop(16),)


def test_flip_mirrors_half_of_the_images():
    image = pixels_of("a")
    flipped = 0
    for seed in range(400):
        found = RandomHorizontalFlip()(image, random.Random(seed))
        assert np.array_equal(found, image) or np.array_equal(found, image[:, ::-1])
        flipped += np.array_equal(found, image[:, ::-1])
    assert 160 <= flipped <= 240


def test_colours_are_permuted_and_inverted_as_often_as_stated():
    image = np.broadcast_to(np.array([10, 20, 30], np.uint8), (2, 2, 3))
    draws = random.Random(0)
    found = Counter(tuple(RandomColors(p_jitter=0)(image, draws)[0, 0].tolist()) for _ in range(6000))
    assert set(found) == {
        tuple(abs(base - v) for v in order)
        for base in (0, 255)
        for order in ((10, 20, 30), (10, 30, 20), (20, 10, 30), (20, 30, 10), (30, 10, 20), (30, 20, 10))
    }
    unchanged = found[10, 20, 30] + found[245, 235, 225]
    inverted = sum(count for colour, count in found.items() if min(colour) > 100)
    assert unchanged / 6000 == pytest.approx(0.4 + 0.6 / 6, abs=0.03)
    assert inverted / 6000 == pytest.approx(0.15, abs=0.02)


def test_jitter_scales_and_moves_each_channel_within_the_range():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 1, 3))
    gains = []
    for seed in range(200):
        found = RandomColors(p_permutation=0, p_inversion=0, p_jitter=1)(ramp, random.Random(seed)).astype(int)
        for channel in range(3):
            values = found[:, 0, channel]
            assert (np.diff(values) >= 0).all()
            gains.append((values.max() - values.min()) / 255)
    assert 0.39 <= min(gains) < 0.45
    assert max(gains) == 1
    assert np.mean(gains) == pytest.approx(0.74, abs=0.03)
