"""Image transforms: small named operations on [H, W, 3] uint8 pixels, composed in order.

Random draws come from the `random.Random` that is passed in, so that a sample's augmentation depends on its position
alone. The published transform of VFM-VAE is `RandomSquareCrop` then `RandomHorizontalFlip`; without augmentation it is
`CenterSquareCrop`. VFMTok has ADM's crops (Dhariwal and Nichol 2021) in their place.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Op = Callable[[np.ndarray, random.Random], np.ndarray]


def resize(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """Resize to resolution x resolution with PIL's Lanczos filter, [H, W, 3] -> [R, R, 3] uint8."""
    return np.asarray(_image(pixels).resize((resolution, resolution), Image.Resampling.LANCZOS))


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def center_square_crop(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """The largest centred square, resized: the validation crop, [H, W, 3] -> [R, R, 3] uint8."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(pixels[top : top + side, left : left + side], resolution)


def adm_resize(image: Image.Image, shorter: int) -> Image.Image:
    """Bring the shorter side to `shorter`: halve (box filter) while it is twice that or more, then bicubic."""
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def adm_crop(image: Image.Image, resolution: int) -> np.ndarray:
    """The centre crop of ADM: `adm_resize`, then the centre square, uint8 [R, R, 3]."""
    image = adm_resize(image, resolution)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return np.asarray(image)[top : top + resolution, left : left + resolution]


@dataclass(frozen=True)
class CenterSquareCrop:
    """`center_square_crop` as an operation; draws nothing."""

    resolution: int

    def __call__(self, pixels: np.ndarray, draws: random.Random) -> np.ndarray:
        return center_square_crop(pixels, self.resolution)


@dataclass(frozen=True)
class RandomSquareCrop:
    """A random square of 0.5 to 1 times the shorter side, resized.

    Draws, in this order: the ratio, the top, the left.
    """

    resolution: int

    def __call__(self, pixels: np.ndarray, draws: random.Random) -> np.ndarray:
        height, width = pixels.shape[:2]
        side = max(1, int(min(height, width) * draws.uniform(0.5, 1.0)))
        top = draws.randint(0, height - side)
        left = draws.randint(0, width - side)
        return resize(pixels[top : top + side, left : left + side], self.resolution)


@dataclass(frozen=True)
class CenterADMCrop:
    """`adm_crop` as an operation; draws nothing."""

    resolution: int

    def __call__(self, pixels: np.ndarray, draws: random.Random) -> np.ndarray:
        return adm_crop(_image(pixels), self.resolution)


@dataclass(frozen=True)
class RandomADMCrop:
    """`adm_resize` to a random shorter side R / max_crop_frac .. R / min_crop_frac, then a random square of side R.

    So the square covers min_crop_frac to max_crop_frac of the shorter side. Draws, in this order: the shorter side, the
    top, the left.
    """

    resolution: int
    min_crop_frac: float = 0.8
    max_crop_frac: float = 1.0

    def __call__(self, pixels: np.ndarray, draws: random.Random) -> np.ndarray:
        smallest, largest = (math.ceil(self.resolution / share) for share in (self.max_crop_frac, self.min_crop_frac))
        resized = np.asarray(adm_resize(_image(pixels), draws.randint(smallest, largest)))
        height, width = resized.shape[:2]
        top = draws.randint(0, height - self.resolution)
        left = draws.randint(0, width - self.resolution)
        return resized[top : top + self.resolution, left : left + self.resolution]


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror left-right with probability 0.5; one draw."""

    def __call__(self, pixels: np.ndarray, draws: random.Random) -> np.ndarray:
        return pixels[:, ::-1] if draws.random() < 0.5 else pixels


@dataclass(frozen=True)
class RandomColors:
    """Random permutation of the colour channels, inversion, and gain and offset of each channel.

    Makes many more colours from few photographs: a small model on a handful of them otherwise learns which colours
    to expect rather than which it sees.
    """

    p_permutation: float = 0.6
    p_inversion: float = 0.15
    p_jitter: float = 0.5
    gain: tuple[float, float] = (0.4, 1.1)

    def __call__(self, pixels: np.ndarray, draws: random.Random) -> np.ndarray:
        if draws.random() < self.p_permutation:
            pixels = pixels[:, :, draws.sample(range(3), 3)]
        if draws.random() < self.p_inversion:
            pixels = 255 - pixels
        if draws.random() < self.p_jitter:
            pixels = self._jitter(pixels, draws)
        return pixels

    def _jitter(self, pixels: np.ndarray, draws: random.Random) -> np.ndarray:
        """Each channel's range is scaled by a gain and moved to a random place within 0 to 255."""
        levels = np.arange(256, dtype=np.float32)
        jittered = np.empty_like(pixels)
        for channel in range(3):
            gain = draws.uniform(*self.gain)
            offset = draws.uniform(0, 255 * (1 - gain))
            table = np.clip(levels * gain + offset, 0, 255).round().astype(np.uint8)
            jittered[:, :, channel] = table[pixels[:, :, channel]]
        return jittered


@dataclass(frozen=True)
class Compose:
    """Operations one after another, all drawing from the same generator."""

    ops: Sequence[Op]

    def __call__(self, pixels: np.ndarray, draws: random.Random) -> np.ndarray:
        for op in self.ops:
            pixels = op(pixels, draws)
        return pixels


RANDOM_CROPS = {"square": RandomSquareCrop, "adm": RandomADMCrop}
CENTER_CROPS = {"square": CenterSquareCrop, "adm": CenterADMCrop}


def training_transform(
    resolution: int, data_augmentation: bool, color_augmentation: bool, crop: str = "square"
) -> Compose:
    """The transform that a `DataConfig` asks for."""
    ops: list[Op] = []
    if data_augmentation:
        ops += [RANDOM_CROPS[crop](resolution), RandomHorizontalFlip()]
    else:
        ops += [CENTER_CROPS[crop](resolution)]
    if color_augmentation:
        ops += [RandomColors()]
    return Compose(tuple(ops))
