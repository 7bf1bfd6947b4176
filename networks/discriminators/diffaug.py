"""Differentiable augmentation (Zhao et al. 2020, arXiv 2006.10738) of what a discriminator sees.

Each operation draws its numbers, one set per image, and applies them; the two are apart, so that draws can be given.
Images are [B, C, H, W] in [-1, 1]; gradients flow through to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from common.registry import Registry


def augment(images: Tensor, policy: Sequence[str], generator: torch.Generator) -> Tensor:
    """Apply the named operations one after the other, with draws from a generator (see `draw_uniform`)."""
    for name in policy:
        images = OPERATIONS[name].draw(images, generator).apply(images)
    return images


def draw_uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) per image, [B], on the images' device.

    A generator on the CPU gives the same draws whatever that device is, and makes nobody wait for a GPU.
    """
    drawn = torch.rand(len(images), generator=generator, device=generator.device)
    return drawn.to(images.device, non_blocking=True)


def draw_integers(low: int, high: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """One whole number in [low, high) per image; otherwise as `draw_uniform`."""
    drawn = torch.randint(low, high, (len(images),), generator=generator, device=generator.device)
    return drawn.to(images.device, non_blocking=True)


@dataclass(frozen=True)
class Color:
    """Brightness, then saturation, then contrast. Each is a number u in [0, 1) per image, [B]; 1/2 changes nothing."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor

    @classmethod
    def draw(cls, images: Tensor, generator: torch.Generator) -> Self:
        return cls(*(draw_uniform(images, generator) for _ in range(3)))

    def apply(self, images: Tensor) -> Tensor:
        return adjust_contrast(
            adjust_saturation(adjust_brightness(images, self.brightness), self.saturation), self.contrast
        )


def adjust_brightness(images: Tensor, u: Tensor) -> Tensor:
    """x + (u - 1/2)."""
    return images + (_per_image(u) - 0.5)


def adjust_saturation(images: Tensor, u: Tensor) -> Tensor:
    """(x - m) 2u + m, with m the mean over the channels of each pixel."""
    mean = images.mean(dim=1, keepdim=True)
    return (images - mean) * (2 * _per_image(u)) + mean


def adjust_contrast(images: Tensor, u: Tensor) -> Tensor:
    """(x - m)(u + 1/2) + m, with m the mean of each image."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (_per_image(u) + 0.5) + mean


def _per_image(u: Tensor) -> Tensor:
    return u.view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Translation:
    """Shift by whole pixels, at most 1/8 of a side: out(i, j) = in(i + rows, j + columns), zero outside; [B] each."""

    RATIO: ClassVar[float] = 0.125

    rows: Tensor
    columns: Tensor

    @classmethod
    def draw(cls, images: Tensor, generator: torch.Generator) -> Self:
        reach = [_share(side, cls.RATIO) for side in images.shape[-2:]]
        return cls(*(draw_integers(-r, r + 1, images, generator) for r in reach))

    def apply(self, images: Tensor) -> Tensor:
        return _shift(_shift(images, self.rows, dim=2), self.columns, dim=3)


def _shift(images: Tensor, offsets: Tensor, dim: int) -> Tensor:
    side = images.shape[dim]
    source = torch.arange(side, device=images.device) + offsets[:, None]  # [B, side]
    shape = [len(images), 1, 1, 1]
    shape[dim] = side
    inside = ((source >= 0) & (source < side)).view(shape)
    index = source.clamp(0, side - 1).view(shape).expand_as(images)
    return torch.where(inside, images.gather(dim, index), 0)


@dataclass(frozen=True)
class Cutout:
    """A box of 1/5 of each side is set to zero. `rows`, `columns`: middle of the box, [B]; it collapses at borders."""

    RATIO: ClassVar[float] = 0.2

    rows: Tensor
    columns: Tensor

    @classmethod
    def draw(cls, images: Tensor, generator: torch.Generator) -> Self:
        sides = images.shape[-2:]
        return cls(
            *(
                draw_integers(0, side + 1 - box % 2, images, generator)
                for side, box in ((side, _share(side, cls.RATIO)) for side in sides)
            )
        )

    def apply(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows = self._covered(self.rows, height).view(-1, 1, height, 1)
        columns = self._covered(self.columns, width).view(-1, 1, 1, width)
        return images.masked_fill(rows & columns, 0)

    def _covered(self, middle: Tensor, side: int) -> Tensor:
        """Which positions of a side the box covers, [B, side]. What lies outside counts as the border pixel."""
        box = _share(side, self.RATIO)
        first = (middle - box // 2)[:, None]
        position = torch.arange(side, device=middle.device)
        return (position >= first.clamp(0, side - 1)) & (position <= (first + box - 1).clamp(0, side - 1))


def _share(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


@dataclass(frozen=True)
class Rescale:
    """Resize all images by one factor 0.8 + 0.4 u, then pad with zeros or crop the middle to the size before.

    `u`: one number in [0, 1), not a tensor, for it decides about shapes. In no published configuration.
    """

    u: float

    @classmethod
    def draw(cls, images: Tensor, generator: torch.Generator) -> Self:
        return cls(torch.rand((), generator=generator, device=generator.device).item())

    def apply(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        resized = [int((0.8 + 0.4 * self.u) * side) for side in size]
        images = F.interpolate(images, size=resized, mode="bilinear", align_corners=False)
        for dim in (2, 3):
            images = _fit(images, size[dim - 2], dim)
        return images


def _fit(images: Tensor, side: int, dim: int) -> Tensor:
    missing = side - images.shape[dim]
    if missing <= 0:
        return images.narrow(dim, -missing // 2, side)
    before, after = missing // 2, missing - missing // 2
    return F.pad(images, (before, after) if dim == 3 else (0, 0, before, after))


OPERATIONS: Registry = Registry(
    "augmentation", {"color": Color, "translation": Translation, "cutout": Cutout, "resize": Rescale}
)
