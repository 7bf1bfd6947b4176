"""The noise that is drawn for a sample, keyed by seed and number.

So a sample is the same whatever its batch, rank or run. Draws are made on the CPU, whose generators give the same
numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.random import torch_generator


def sample_noise(indices: Sequence[int], shape: Sequence[int], seed: int, purpose: str) -> Tensor:
    """Standard normal noise [B, *shape], float32, of samples with these numbers."""
    return torch.stack([torch.randn(*shape, generator=torch_generator(seed, purpose, index)) for index in indices])


class StepNoise:
    """Standard normal noise of one step after another, [B, size] in float64.

    Args:
        indices: numbers of the samples.
        size: elements of one sample's state.
        device: where the state is.
    """

    def __init__(self, indices: Sequence[int], size: int, seed: int, device: torch.device):
        self._generators = [torch_generator(seed, "sample_step_noise", index) for index in indices]
        self._size, self._device = size, device

    def __call__(self) -> Tensor:
        draws = [torch.randn(self._size, generator=g, dtype=torch.float64) for g in self._generators]
        return torch.stack(draws).to(self._device)
