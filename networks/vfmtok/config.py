"""Configuration of VFMTok's networks. Imports no torch. Defaults are the published settings."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from common.config import Relation, StrictModel
from common.errors import UserError
from networks.config import EncoderConfig

GROUPS = 32  # of the pixel decoder's group norms


class RegionEncoderConfig(StrictModel):
    """Learned queries on a square grid, each of which gathers the features of a region of the image."""

    width: PositiveInt = Field(512, description="Width of the region tokens, in the decoding transformer too.")
    depth: PositiveInt = Field(6, description="Layers of deformable cross-attention and causal self-attention.")
    heads: PositiveInt = Field(8, description="Attention heads.")
    mlp_dim: PositiveInt = Field(1024, description="Width of the feed-forward layers.")
    num_points: PositiveInt = Field(4, description="Points that a query samples per head and level.")
    num_tokens: PositiveInt = Field(256, description="Number of region tokens, a square.")
    init: Literal["independent", "copies"] = Field(
        "independent", description="Whether layers start from weights of their own, or all from the same (published)."
    )

    @property
    def side(self) -> int:
        """Side of the grid on which the queries sit."""
        return math.isqrt(self.num_tokens)


class CodebookConfig(StrictModel):
    """What region tokens are replaced by."""

    vocab_size: PositiveInt = Field(16384, description="Number of codes.")
    vocab_width: PositiveInt = Field(12, description="Width of a code.")
    l2_norm: bool = Field(True, description="Compare and hand on directions only.")


class DecodeTransformerConfig(StrictModel):
    """The causal transformer that spreads region tokens over the grids of the image and of the frozen features."""

    depth: PositiveInt = Field(6, description="Transformer blocks.")
    heads: PositiveInt = Field(8, description="Attention heads.")
    mlp_dim: PositiveInt = Field(2048, description="Nominal width of the feed-forward layers; SwiGLU takes 2/3 of it.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of attention weights in training.")
    num_register_tokens: NonNegativeInt = Field(
        4, description="Register tokens in checkpoints; standing last in a causal sequence they decide nothing."
    )


class PixelDecoderConfig(StrictModel):
    """The convolutional decoder from the transformer's grid to pixels."""

    channels: PositiveInt = Field(128, description="Channels at full resolution.")
    multipliers: list[PositiveInt] = Field(
        [1, 1, 2, 2, 4], min_length=1, description="Channels of each resolution over that, from full to lowest."
    )
    num_res_blocks: NonNegativeInt = Field(1, description="One less than the residual blocks per resolution.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in the residual blocks in training.")

    @property
    def factor(self) -> int:
        """Image side over the side of the grid that goes in."""
        return 2 ** (len(self.multipliers) - 1)


class VFMTokConfig(StrictModel):
    """Everything that decides the shape of a VFMTok tokenizer.

    Attributes:
        MODEL_TYPE: its name in `networks.TOKENIZERS`.
        conditional, reads_texts: its decoder depends on no labels.
    """

    MODEL_TYPE: ClassVar[str] = "vfmtok"
    conditional: ClassVar[bool] = False
    reads_texts: ClassVar[bool] = False

    img_resolution: PositiveInt = Field(336, description="Side of the images in pixels; the model takes no other.")
    encoder: EncoderConfig
    region_encoder: RegionEncoderConfig = RegionEncoderConfig()
    codebook: CodebookConfig = CodebookConfig()
    decode_transformer: DecodeTransformerConfig = DecodeTransformerConfig()
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()

    def pixel_side(self) -> int:
        """Side of the grid from which pixels are decoded."""
        return self.img_resolution // self.pixel_decoder.factor

    def feature_side(self) -> int:
        """Side of the grid of the frozen features that are predicted, those of the last layer."""
        return self.encoder.token_sides(self.img_resolution)[-1]

    def feature_width(self) -> int:
        """Channels of these features."""
        return self.encoder.patch_in_dimensions[-1]


# --- relations between keys ------------------------------------------------------------------------------------


def _square_of_tokens(c) -> str | None:
    count, side = c.region_encoder.num_tokens, c.region_encoder.side
    return None if side**2 == count else f"found {count}, expected a square, e.g. {side**2}: queries sit on a grid."


def _heads_divide(section: str) -> Relation:
    def check(c) -> str | None:
        width, heads = c.region_encoder.width, getattr(c, section).heads
        return f"found {heads}, expected a divisor of region_encoder.width {width}." if width % heads else None

    return Relation((f"{section}.heads", "region_encoder.width"), check)


def _channels_are_grouped(c) -> str | None:
    d = c.pixel_decoder
    wrong = [d.channels * m for m in d.multipliers if d.channels * m % GROUPS]
    return f"gives {wrong[0]} channels, expected a multiple of {GROUPS} for the group norms." if wrong else None


def _one_width_per_layer(c) -> str | None:
    layers, widths = c.encoder.patch_from_layers, c.encoder.patch_in_dimensions
    if len(layers) == len(widths):
        return None
    return f"{len(layers)} layers {layers}, but encoder.patch_in_dimensions has {len(widths)} values; give one each."


def _last_layer_is_target(c) -> str | None:
    if c.encoder.patch_from_layers[-1] == -1:
        return None
    return f"found {c.encoder.patch_from_layers}, expected -1 at the end: that layer is what is predicted."


def _known_family(c) -> str | None:
    try:
        c.encoder.resolved_family()
    except UserError as error:
        return str(error)
    return None


def vfmtok_relations(resolution_key: str, side) -> list[Relation]:
    """The rules between the keys of a VFMTok tokenizer.

    Args:
        resolution_key: dotted path of the image side, for messages.
        side: function from the whole configuration to that side in pixels.
    """

    def whole_grids(c) -> str | None:
        if _known_family(c) or _one_width_per_layer(c):
            return None  # reported by their own relations
        patch, scaled = c.encoder.pixel_multiple(), side(c) * c.encoder.scale_factor
        if scaled % patch:
            return (
                f"{side(c)} x encoder.scale_factor {c.encoder.scale_factor:g} is not divisible by patches of {patch}."
            )
        if side(c) % c.pixel_decoder.factor:
            return f"{side(c)} is not divisible by the pixel decoder's factor {c.pixel_decoder.factor}."
        return None

    names = ("encoder.vfm_name", "encoder.family", "encoder.revision")
    layers = ("encoder.patch_from_layers", "encoder.patch_in_dimensions")
    return [
        Relation(names, _known_family),
        Relation(layers, _one_width_per_layer),
        Relation(("encoder.patch_from_layers",), _last_layer_is_target),
        Relation(("region_encoder.num_tokens",), _square_of_tokens),
        _heads_divide("region_encoder"),
        _heads_divide("decode_transformer"),
        Relation(("pixel_decoder.multipliers", "pixel_decoder.channels"), _channels_are_grouped),
        Relation((resolution_key, "encoder.scale_factor", "pixel_decoder.multipliers", *names, *layers), whole_grids),
    ]


VFMTOK_RELATIONS = vfmtok_relations("img_resolution", lambda c: c.img_resolution)
