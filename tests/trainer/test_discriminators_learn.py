"""The discriminators' own step teaches each of them to tell photographs from blurred ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from common.resize import resize_images
from common.value_range import uint8_to_unit, unit_to_signed
from data.photographs import PHOTOGRAPHS, area_resize
from losses.config import PatchGANTermConfig, StyleGANTTermConfig, VFMTokGANTermConfig
from losses.objective import Objective
from losses.warmup import DiscriminatorWarmup
from networks.config import DiscriminatorConfig
from networks.discriminators import patchgan
from trainer.config import AdamConfig
from trainer.optimizer import build_adam
from trainer.systems.adversarial import Adversary
from trainer.systems.base import MicroStep

# Of each: the term that trains it, the discriminator, the term's options, its optimiser, side and number of steps.
SETTINGS = {
    "stylegan_t": (
        "stylegan_t",
        DiscriminatorConfig(use_stylegan_t_discriminator=True, backbone="random_tiny", diffaug=False),
        StyleGANTTermConfig(weight=1.0),
        AdamConfig(lr=3e-3),
        64,
        80,
    ),
    "patchgan": (
        "patchgan",
        DiscriminatorConfig(use_patchgan_discriminator=True),
        PatchGANTermConfig(weight=1.0, loss_type="hinge"),
        AdamConfig(lr=1e-4),
        32,
        32,
    ),
    "vfmtok": (
        "vfmtok_gan",
        DiscriminatorConfig(
            use_stylegan_t_discriminator=True, projected_kind="vfmtok", backbone="random_tiny", diffaug=False
        ),
        VFMTokGANTermConfig(weight=1.0),
        AdamConfig(lr=3e-3),
        64,
        80,
    ),
    "stylegan2": (
        "vfmtok_gan",
        DiscriminatorConfig(use_stylegan2_discriminator=True),
        VFMTokGANTermConfig(weight=1.0, disc_loss="vanilla"),
        AdamConfig(lr=3e-4),
        8,
        28,
    ),
}


def photographs(side: int) -> Tensor:
    """Four colour photographs, [4, 3, side, side] in [-1, 1]."""
    squares = []
    for name in ("astronaut", "coffee", "chelsea", "flower"):
        pixels = PHOTOGRAPHS[name].pixels()
        short = min(pixels.shape[:2])
        squares.append(area_resize(pixels[:short, :short], side))
    return unit_to_signed(uint8_to_unit(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)))


def blurred(images: Tensor) -> Tensor:
    """What is left of images after an eighth of their sides."""
    side = images.shape[-1]
    return resize_images(resize_images(images, "bilinear", size=side // 8), "bilinear", size=side)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_discriminator_learns_to_tell_pictures_from_blurred_ones(name: str, monkeypatch) -> None:
    """Nine answers in ten are right after some tens of steps on the same four pictures; half are, at the start."""
    monkeypatch.setattr(patchgan, "CHANNELS", (32, 64, 128, 256))  # half its width learns as fast
    term, discriminators, weighting, optimizer, side, steps = SETTINGS[name]
    adversary = Adversary(
        discriminators,
        Objective({term: weighting}),
        DiscriminatorWarmup(stylegan_t=False, patchgan=False),
        optimizer,
        max_loss=1e4,
        interpolation="bilinear",
        label_dim=0,
        seed=0,
        device=torch.device("cpu"),
        resolution=side,
    )
    adam = build_adam(adversary.phase.parameters, optimizer, fused=False)
    real = photographs(side)
    fake, accuracy = blurred(real), []
    for step in range(steps):
        at = MicroStep(seed=0, step=step, nimg=4 * step, micro_batch=0, is_first=True, share=1.0)
        report = adversary.backward(fake, real, None, at)
        adam.step()
        adam.zero_grad()
        accuracy.append(report[f"discriminator/{term}/accuracy"].item())
    assert accuracy[0] < 0.6
    assert np.mean(accuracy[-5:]) > 0.9
