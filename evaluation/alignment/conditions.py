"""Conditions under which features are compared, by name. Imports no torch.

    clean             the images as they are
    equivariance      a quarter turn and a scale, drawn for each image
    noise_0.050       Gaussian noise with a standard deviation of 5 % of the value range
    scale_0.50        all images at half the side
    rotation_90       all images turned counter-clockwise by 90 degrees

SE-CKNNA averages over conditions: `PUBLISHED` with the transformations drawn per image, `GRID` with one condition for
every scale and every rotation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from common.errors import UserError

Mode = Literal["clean", "equivariance", "noise", "scale", "rotation"]

NOISE_LEVELS = (0.05, 0.1, 0.15, 0.2)
ROTATIONS = (0, 90, 180, 270)
SCALES = (1.0, 0.75, 0.5, 0.25)
CLEAN = "clean"
EQUIVARIANCE = "equivariance"


def noise_name(level: float) -> str:
    """Name of the condition, and of its folder of images."""
    return f"noise_{level:.3f}"


PUBLISHED = (EQUIVARIANCE, *map(noise_name, NOISE_LEVELS))
GRID = (
    *map(noise_name, NOISE_LEVELS),
    *(f"scale_{scale:.2f}" for scale in SCALES),
    *(f"rotation_{rotation}" for rotation in ROTATIONS),
)
GROUPS = {"published": PUBLISHED, "grid": GRID}


@dataclass(frozen=True)
class Condition:
    """What is done to the images.

    Args:
        name: as above.
        value: noise level (share of the value range), scale or rotation (degrees); 0 for the others.
    """

    name: str
    mode: Mode
    value: float = 0.0


def parse_condition(name: str) -> Condition:
    """The condition of a name. Raises: UserError if there is none of that name."""
    if name in (CLEAN, EQUIVARIANCE):
        return Condition(name, name)
    if match := re.fullmatch(r"(noise|scale)_(\d+\.\d+)|(rotation)_(\d+)", name):
        mode, value = (match[1], float(match[2])) if match[1] else (match[3], float(match[4]))
        in_range = {"noise": value >= 0, "scale": 0 < value <= 1, "rotation": value in ROTATIONS}
        if in_range[mode]:
            return Condition(name, mode, value)
    raise UserError(
        f"condition {name!r} is not known; expected clean, equivariance, noise_LEVEL (noise_0.050), scale_FACTOR up to "
        "1 (scale_0.50) or rotation_DEGREES (rotation_90)."
    )


def expand(names: Iterable[str]) -> list[Condition]:
    """Conditions of these names, in order and each once; the names of `GROUPS` stand for all of theirs."""
    flat = [name for entry in names for name in GROUPS.get(entry, (entry,))]
    return [parse_condition(name) for name in dict.fromkeys(flat)]
