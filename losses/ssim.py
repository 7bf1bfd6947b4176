"""Structural dissimilarity (Wang et al. 2004)."""

from __future__ import annotations

from torch import Tensor

from common.similarity import ssim
from losses.config import TermConfig
from losses.interfaces import Loss, LossInputs


class SSIMLoss(Loss):
    """1 - mean SSIM of the images clamped to [-1, 1], borders included."""

    def __init__(self, config: TermConfig):
        super().__init__()

    def forward(self, inputs: LossInputs) -> Tensor:
        reconstruction, target = (x.float().clamp(-1, 1) for x in (inputs.reconstruction, inputs.target))
        return 1 - ssim(reconstruction, target, data_range=2.0).mean()
