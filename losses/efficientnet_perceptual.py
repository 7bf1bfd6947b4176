"""A perceptual distance on EfficientNet-Lite0 features, for use without any download. It is not LPIPS."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.config import TermConfig
from losses.interfaces import Loss, LossInputs
from networks.encoders.efficientnet_lite0 import load_efficientnet_lite0

STAGES = 6  # outputs of stages 0 to 5


class EfficientNetDistance(nn.Module):
    """Channel-normalised squared feature differences, averaged over positions, summed over channels, mean of 6 stages.

    (a, b) in [-1, 1], [B, 3, H, W] -> one distance per pair, [B]. The gradient flows into the second image only.
    """

    def __init__(self):
        super().__init__()
        self.backbone = load_efficientnet_lite0().requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetDistance:
        """Stay in eval mode: the network is a fixed measure."""
        return super().train(False)

    def forward(self, reference: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self.features(reference)
        distances = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(expected, self.features(images), strict=True)]
        return torch.stack(distances).mean(0)

    def features(self, images: Tensor) -> list[Tensor]:
        """Unit vectors over channels of each stage's output."""
        x = self.backbone.bn1(self.backbone.conv_stem(images))  # trained on (x01 - 0.5) / 0.5, which is [-1, 1]
        features = []
        for stage in self.backbone.blocks[:STAGES]:
            x = stage(x)
            features.append(F.normalize(x.float(), dim=1, eps=1e-8))
        return features


class EfficientNetPerceptualLoss(Loss):
    """Mean EfficientNet-Lite0 distance over the batch."""

    def __init__(self, config: TermConfig):
        super().__init__()
        self.distance = EfficientNetDistance()

    def forward(self, inputs: LossInputs) -> Tensor:
        return self.distance(inputs.target, inputs.reconstruction).mean()
