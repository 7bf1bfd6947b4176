"""What changes in the course of training: which terms count, and the blur of the discriminators' inputs."""

from __future__ import annotations

from dataclasses import dataclass

from losses.config import MultiscaleConfig, TermConfig


@dataclass(frozen=True)
class Moment:
    """When in training an objective is evaluated.

    Attributes:
        nimg: images seen before this step.
        waiting: terms that do not count yet, whatever their window, because their discriminator is held back.
    """

    nimg: int
    waiting: frozenset[str] = frozenset()


def in_window(config: TermConfig | MultiscaleConfig, nimg: int) -> bool:
    """Whether a window is open: 1000 start_kimg <= nimg < 1000 end_kimg."""
    return 1000 * config.start_kimg <= nimg and (config.end_kimg is None or nimg < 1000 * config.end_kimg)


def blur_sigma(nimg: int, init_sigma: float, fade_kimg: float) -> float:
    """Width in pixels of the blur of the discriminators' inputs: falls linearly from `init_sigma` to 0.

    Args:
        nimg: images seen before this step.
        init_sigma: the width at 0 images.
        fade_kimg: it is 0 from here on, in thousands of images; at most 1: there is no blur at all.
    """
    if fade_kimg <= 1:
        return 0.0
    return max(1 - nimg / (1000 * fade_kimg), 0.0) * init_sigma
