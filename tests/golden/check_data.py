"""Golden check of the published image transform."""

from __future__ import annotations

import random

import torch

from data.augment import CenterSquareCrop, training_transform
from tests.golden.cases import Case

LEVELS = 1
"""The stored images were resized by another version of Pillow."""


def check_training_data(case: Case) -> None:
    """Crop, resize and flip for every seed, and the centre crop; the order of samples is this project's own."""
    pixels = case.tensors["img_hwc"].numpy()
    resolution = case.facts["resolution"]
    augment = training_transform(resolution, data_augmentation=True, color_augmentation=False)
    for row, facts in enumerate(case.facts["augment"]):
        found = augment(pixels, random.Random(facts["python_seed"]))
        _check_levels(case, f"aug_{row}", found)
    _check_levels(case, f"center_{resolution}", CenterSquareCrop(resolution)(pixels, random.Random(0)))


def _check_levels(case: Case, name: str, found) -> None:
    reference = case.tensors[name].int()
    difference = (torch.from_numpy(found.copy()).permute(2, 0, 1).int() - reference).abs().max().item()
    assert difference <= LEVELS, f"{name}: differs by {difference} levels"
    case.compared += 1
    case.compared += 1
