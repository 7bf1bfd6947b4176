"""Configuration of the diffusion transformers, and their named sizes. Imports no torch.

Keys are the reference's constructor arguments; defaults are the published settings for f16d32 latents of 256-pixel
images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from common.config import Relation, StrictModel
from networks.sizes import NamedSizeConfig, size_keys


@dataclass(frozen=True)
class Size:
    """What the name of a network stands for."""

    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int


_S, _B, _L, _XL = (384, 12, 6), (768, 12, 12), (1024, 24, 16), (1152, 28, 16)  # width, blocks, heads


def _named(family: str, widths: Mapping[str, tuple[int, int, int]], patches: Iterable[int]) -> dict[str, Size]:
    return {f"{family}-{name}/{p}": Size(p, *size) for p in patches for name, size in widths.items()}


LIGHTNINGDIT_SIZES = MappingProxyType(
    _named("LightningDiT", {"B": _B, "L": _L, "XL": _XL, "1p0B": (1536, 24, 24), "1p6B": (1792, 28, 28)}, (1, 2))
)
SIT_SIZES = MappingProxyType(
    _named("SiT", {"XL": _XL}, (1,)) | _named("SiT", {"S": _S, "B": _B, "L": _L, "XL": _XL}, (2, 4, 8))
)


class TransformerConfig(NamedSizeConfig[Size]):
    """What both diffusion transformers have: the latents, the size and the classes."""

    SIZE: ClassVar = Size

    patch_size: PositiveInt | None = Field(None, description="Side of a patch of the latent; null: by model_type.")
    hidden_size: PositiveInt | None = Field(None, description="Width of the tokens; null: by model_type.")
    depth: PositiveInt | None = Field(None, description="Number of blocks; null: by model_type.")
    num_heads: PositiveInt | None = Field(None, description="Attention heads; null: by model_type.")
    mlp_ratio: PositiveFloat = Field(4.0, description="Width of a feed-forward layer over that of the tokens.")
    input_size: PositiveInt = Field(16, description="Side of the latent.")
    in_channels: PositiveInt = Field(32, description="Channels of the latent.")
    num_classes: PositiveInt = Field(1000, description="Number of classes, without the null class.")
    class_dropout_prob: float = Field(
        0.1, ge=0, lt=1, description="How often training replaces a label by the null class; 0: there is none."
    )
    use_checkpoint: bool = Field(False, description="Compute activations of each block twice instead of keeping them.")

    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents."""
        return self.in_channels, self.input_size, self.input_size

    def tokens_per_side(self) -> int:
        """Side of the grid of tokens."""
        return self.input_size // self.size().patch_size


class LightningDiTConfig(TransformerConfig):
    """LightningDiT, as VFM-VAE trains it."""

    SIZES: ClassVar[Mapping[str, Size]] = LIGHTNINGDIT_SIZES

    use_qknorm: bool = Field(True, description="Normalise queries and keys of each head.")
    use_swiglu: bool = Field(True, description="SwiGLU feed-forward layers; false: GELU.")
    use_rope: bool = Field(True, description="Rotary positions on queries and keys, besides the fixed table.")
    use_rmsnorm: bool = Field(True, description="RMSNorm; false: LayerNorm.")
    wo_shift: bool = Field(False, description="Blocks that are modulated by a scale and a gate, without a shift.")
    learn_sigma: bool = Field(False, description="Twice the output channels, of which the second half is not used.")


class REGSiTConfig(TransformerConfig):
    """SiT with an entangled class token and an alignment loss (REG)."""

    SIZES: ClassVar[Mapping[str, Size]] = SIT_SIZES

    qk_norm: bool = Field(True, description="Normalise queries and keys of each head.")
    encoder_depth: PositiveInt = Field(8, description="After how many blocks the tokens are aligned; SiT-B takes 4.")
    z_dims: list[PositiveInt] = Field(
        [768], min_length=1, description="Widths of the target encoders; the first is that of the class token."
    )
    projector_dim: PositiveInt = Field(2048, description="Width of the hidden layers of the projectors.")


class TargetConfig(StrictModel):
    """The frozen encoders of REG: tokens of the network are aligned with theirs, and a class token is denoised."""

    vfm_names: list[str] = Field(
        ["facebook/dinov2-base"],
        min_length=1,
        description="Folders, hub ids or names in timm; the class token is that of the last one.",
    )


# --- relations between keys ------------------------------------------------------------------------------------------


def _patches_cover_latent(c: TransformerConfig) -> str | None:
    if c.size_problem() is None and c.input_size % c.size().patch_size:
        return f"{c.input_size} is no multiple of the patch size {c.size().patch_size}."
    return None


def _width_divides(c: TransformerConfig) -> str | None:
    if c.size_problem():
        return None
    width, heads = c.size().hidden_size, c.size().num_heads
    if width % heads:
        return f"{width} cannot be shared among num_heads {heads}; use a multiple of it."
    if width % 4:
        return f"{width} is no multiple of 4, which sines and cosines of rows and columns need."
    return None


def _heads_turn(c: LightningDiTConfig) -> str | None:
    if c.size_problem() or _width_divides(c) or not c.use_rope:
        return None
    head = c.size().hidden_size // c.size().num_heads
    return f"needs heads of a multiple of 4 channels; hidden_size / num_heads is {head}." if head % 4 else None


def _alignment_is_inside(c: REGSiTConfig) -> str | None:
    if c.size_problem() or c.encoder_depth <= c.size().depth:
        return None
    return f"{c.encoder_depth} is more than the {c.size().depth} blocks that there are."


_SIZE_KEYS = size_keys(Size)
_SHARED_RELATIONS = [
    Relation(_SIZE_KEYS, TransformerConfig.size_problem),
    Relation(("input_size", *_SIZE_KEYS), _patches_cover_latent),
    Relation(("hidden_size", *_SIZE_KEYS), _width_divides),
]
LIGHTNINGDIT_RELATIONS = [*_SHARED_RELATIONS, Relation(("use_rope", *_SIZE_KEYS), _heads_turn)]
REG_RELATIONS = [*_SHARED_RELATIONS, Relation(("encoder_depth", *_SIZE_KEYS), _alignment_is_inside)]
