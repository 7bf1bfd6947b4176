"""Pixel losses: L1, L2, and L1 on the images of intermediate resolutions."""

from __future__ import annotations

from torch import Tensor

from losses.config import MultiscaleConfig, TermConfig
from losses.interfaces import Loss, LossInputs


class L1Loss(Loss):
    """mean |x - x_hat|."""

    def __init__(self, config: TermConfig):
        super().__init__()

    def forward(self, inputs: LossInputs) -> Tensor:
        return (inputs.target - inputs.reconstruction).abs().mean()


class L2Loss(Loss):
    """mean (x - x_hat)^2."""

    def __init__(self, config: TermConfig):
        super().__init__()

    def forward(self, inputs: LossInputs) -> Tensor:
        return (inputs.target - inputs.reconstruction).square().mean()


class MultiscaleLoss(Loss):
    """sum_k w_k mean |x_k - x_hat_k| over the resolutions k of the decoder's pyramid that have a weight."""

    needs = frozenset({"pyramid", "pyramid_targets"})

    def __init__(self, config: MultiscaleConfig):
        super().__init__()
        self.weights = {side: weight for side, weight in config.weights.items() if weight > 0}

    def forward(self, inputs: LossInputs) -> Tensor:
        return sum(self.weights[side] * difference for side, difference in self._differences(inputs).items())

    def details(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The unweighted difference of each resolution that has a weight."""
        return {f"resolution_{side}": difference for side, difference in self._differences(inputs).items()}

    def _differences(self, inputs: LossInputs) -> dict[int, Tensor]:
        return {side: (inputs.pyramid_targets[side] - inputs.pyramid[side]).abs().mean() for side in self.weights}
