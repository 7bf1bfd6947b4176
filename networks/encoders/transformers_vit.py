"""Encoders that are plain vision transformers of the transformers library."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ShapeError, UserError
from networks.encoders import model_config_of
from networks.encoders.base import VisionEncoder
from networks.interfaces import Features


def load_pretrained(model_class: Any, vfm_name: str, revision: str | None, **options: Any) -> nn.Module:
    """`from_pretrained` in fp32 that never leaves a weight at random.

    Raises: UserError if the folder or hub id cannot be loaded, or lacks weights.
    """
    path = os.path.expanduser(vfm_name)
    is_folder = os.path.isdir(path)
    if not is_folder and (vfm_name.count("/") > 1 or vfm_name.startswith((".", "/", "~"))):
        raise UserError(f"encoder.vfm_name: the folder {vfm_name!r} does not exist; give a model folder or a hub id.")
    try:
        model, info = model_class.from_pretrained(
            path if is_folder else vfm_name,
            revision=revision,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"encoder.vfm_name: {vfm_name!r} could not be loaded ({first_line}). Give a folder that holds config.json "
            f"and weights, e.g. made with `hf download {vfm_name} --local-dir ...`."
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"encoder.vfm_name: {vfm_name!r} lacks {len(missing)} weights of {type(model).__name__}, "
            f"e.g. {missing[0]}; they would stay random. Give the folder of a complete model of this family."
        )
    return model


class TransformersViT(VisionEncoder):
    """Patch embedding, a stack of blocks and a final norm, run block by block and no further than needed."""

    @classmethod
    def model_class(cls, model_type: str | None) -> Any:
        """The transformers class for a `model_type` of this family."""
        raise NotImplementedError

    @classmethod
    def load_backbone(cls, vfm_name: str, revision: str | None) -> nn.Module:
        model_type = (model_config_of(vfm_name) or {}).get("model_type")
        return load_pretrained(cls.model_class(model_type), vfm_name, revision)

    @classmethod
    def empty_backbone(cls, vfm_name: str) -> nn.Module | None:
        values = model_config_of(vfm_name)
        if values is None:
            return None
        model_class = cls.model_class(values.get("model_type"))
        options = model_class.config_class.from_pretrained(os.path.expanduser(vfm_name))
        return model_class(options)

    prefix_tokens: int = 0

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels -> tokens with position embedding, prefix tokens first."""
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        raise NotImplementedError

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.backbone.config.patch_size

    def layer_channels(self, layer: int) -> int:
        return self.backbone.config.hidden_size

    def run(self, pixels: Tensor) -> Features:
        height, width = pixels.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ShapeError(
                f"the encoder sees {height} x {width} pixels, expected multiples of its patch size {self.patch_size}; "
                "use another image size or encoder.scale_factor."
            )
        grid = (height // self.patch_size, width // self.patch_size)
        wanted = {layer: self.resolve_layer(layer) for layer in self.layers}
        tokens, states = self.embed(pixels), {}
        for count in range(max(wanted.values()) + 1):
            if count > 0:
                tokens = self.blocks[count - 1](tokens, None)
            for layer, blocks in wanted.items():
                if blocks == count:
                    state = self.final_norm(tokens) if layer == -1 else tokens
                    states[layer] = state[:, self.prefix_tokens :]
        return Features([states[layer] for layer in self.layers], [grid] * len(self.layers))
