"""Three-scale PatchGAN discriminator in the manner of pix2pixHD (arXiv 1711.11585)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from networks.discriminators.layers import LEAKY_SLOPE, LocalBatchNorm

SCALES = 3  # full image, half, quarter
CHANNELS = (64, 128, 256, 512)
STRIDES = (2, 2, 2, 1)


class PatchLayer(nn.Module):
    """4x4 convolution, then (where asked for) local batch norm and leaky ReLU.

    Args:
        stride: of the convolution; each side s becomes s // stride + 1.
        norm, activate: whether the two follow.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, norm: bool, activate: bool):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 4, stride, padding=2)
        nn.init.normal_(self.conv.weight, std=0.02)
        self.norm = LocalBatchNorm(n_out) if norm else None
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.leaky_relu(x, LEAKY_SLOPE) if self.activate else x


class PatchNetwork(nn.Module):
    """One logit per overlapping patch of an image: [B, 3, H, W] -> the outputs of its five layers, logits last."""

    def __init__(self):
        super().__init__()
        widths = (3, *CHANNELS)
        layers = [
            PatchLayer(widths[i], widths[i + 1], stride, norm=i > 0, activate=True) for i, stride in enumerate(STRIDES)
        ]
        self.layers = nn.ModuleList([*layers, PatchLayer(widths[-1], 1, 1, norm=False, activate=False)])

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs


class PatchGAN(nn.Module):
    """A network of its own for the full image, for half its sides, and for a quarter.

    Args:
        keep_features: hand out the outputs of all layers rather than the logits alone.
    """

    def __init__(self, keep_features: bool):
        super().__init__()
        self.keep_features = keep_features
        self.scales = nn.ModuleList(PatchNetwork() for _ in range(SCALES))

    def forward(self, images: Tensor) -> list[list[Tensor]]:
        """Images [B, 3, H, W] in [-1, 1] -> of each scale the kept outputs [B, C, h, w], fp32, logits last."""
        verdicts = []
        for number, network in enumerate(self.scales):
            if number:
                images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
            outputs = network(images)
            verdicts.append([x.float() for x in (outputs if self.keep_features else outputs[-1:])])
        return verdicts
