"""Feature matching of the PatchGAN (pix2pixHD, Wang et al. 2018, eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.config import TermConfig
from losses.interfaces import Loss, LossInputs

LAYERS = 4  # of a PatchGAN in front of its logits; the weights of the layers sum to this


class FeatureMatchingLoss(Loss):
    """mean over scales s of (4 / T) sum_{t < T} mean |D_{s,t}(fake) - D_{s,t}(real)|, over the T layers before logits.

    No gradient flows into the features of the real images.
    """

    needs = frozenset({"fake", "real"})
    group = "adversarial"

    def __init__(self, config: TermConfig):
        super().__init__()

    def forward(self, inputs: LossInputs) -> Tensor:
        scales = zip(inputs.fake.patches, inputs.real.patches, strict=True)
        return torch.stack([_distance(fake[:-1], real[:-1]) for fake, real in scales]).mean()


def _distance(fake: list[Tensor], real: list[Tensor]) -> Tensor:
    assert fake, "the PatchGAN keeps no intermediate features"
    gaps = [(f.float() - r.detach().float()).abs().mean() for f, r in zip(fake, real, strict=True)]
    return torch.stack(gaps).sum() * (LAYERS / len(gaps))
