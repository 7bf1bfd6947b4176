"""Configuration of the autoregressive models, and their named sizes. Imports no torch.

Keys are the reference's constructor arguments; defaults are the published settings for 256 tokens of 16384 codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common.config import Relation, StrictModel
from networks.sizes import NamedSizeConfig, size_keys

Probability = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Size:
    """What the name of a network stands for."""

    n_layer: int
    n_head: int
    dim: int


GPT_SIZES = MappingProxyType(
    {
        "GPT-B": Size(12, 12, 768),
        "GPT-L": Size(24, 16, 1024),
        "GPT-XL": Size(36, 20, 1280),
        "GPT-XXL": Size(48, 24, 1536),
        "GPT-2B": Size(48, 32, 1920),
        "GPT-3B": Size(24, 32, 3200),
        "GPT-1B": Size(22, 32, 2048),
        "GPT-XXXL": Size(48, 40, 2560),
        "GPT-7B": Size(32, 32, 4096),
    }
)


class GPTConfig(NamedSizeConfig[Size]):
    """A class-conditional GPT, as LlamaGen and VFMTok train it."""

    SIZE: ClassVar = Size
    SIZES: ClassVar = GPT_SIZES

    n_layer: PositiveInt | None = Field(None, description="Number of layers; null: by model_type.")
    n_head: PositiveInt | None = Field(None, description="Attention heads; null: by model_type.")
    dim: PositiveInt | None = Field(None, description="Width of the tokens; null: by model_type.")
    n_kv_head: PositiveInt | None = Field(
        None, description="Heads of keys and values, each shared by n_head / n_kv_head query heads; null: n_head."
    )
    multiple_of: PositiveInt = Field(
        256, description="The feed-forward layers have 8/3 of the width, rounded up to a multiple of this."
    )
    vocab_size: PositiveInt = Field(16384, description="Number of codes of the tokenizer.")
    block_size: PositiveInt = Field(256, description="Tokens of an image, row by row; a square number.")
    num_classes: PositiveInt = Field(1000, description="Number of classes, without the null class.")
    class_dropout_prob: Probability = Field(
        0.1, description="How often training replaces a label by the null class; 0: there is none."
    )
    token_dropout_p: Probability = Field(0.1, description="Dropout of the embedded tokens.")
    attn_dropout_p: Probability = Field(0.0, description="Dropout of attention weights.")
    resid_dropout_p: Probability = Field(0.1, description="Dropout behind the attention.")
    ffn_dropout_p: Probability = Field(0.1, description="Dropout behind the feed-forward layer.")
    drop_path_rate: Probability = Field(
        0.0,
        description="How often a sample skips the last layer; linearly less towards the first, which it never skips.",
    )
    rope_base: PositiveFloat = Field(10000.0, description="Base of the frequencies of the rotary positions.")
    norm_eps: PositiveFloat = Field(1e-5, description="Added to the mean square in every norm.")
    use_checkpoint: bool = Field(False, description="Compute activations of each layer twice instead of keeping them.")

    def grid_side(self) -> int:
        """Side of the square grid of tokens."""
        return math.isqrt(self.block_size)

    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.size().n_head

    def feed_forward_width(self) -> int:
        """Hidden width of the feed-forward layers."""
        return -(-(8 * self.size().dim // 3) // self.multiple_of) * self.multiple_of


class FrozenTokenizerConfig(StrictModel):
    """The tokenizer that makes tokens of images during the training."""

    vae_pth: str | None = Field(
        None, description="Checkpoint folder or run folder of a discrete tokenizer; null: tokens come from data.path."
    )
    weights: Literal["ema", "raw"] = Field("ema", description="Which of its weights.")


class TokenSamplingConfig(StrictModel):
    """How tokens are drawn; defaults are the published settings."""

    cfg_scale: NonNegativeFloat = Field(1.5, description="Strength of guidance; up to 1: none.")
    cfg_interval: int = Field(
        -1, ge=-1, description="Guide the first cfg_interval + 2 tokens only, so 5 guides tokens 0 to 6; -1: all."
    )
    temperature: NonNegativeFloat = Field(1.0, description="Divides the logits; towards 0 the likeliest token wins.")
    top_k: NonNegativeInt = Field(0, description="Draw from the so many likeliest tokens; 0: from all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the likeliest tokens whose probabilities together reach this."
    )
    sample_logits: bool = Field(True, description="false: always take the likeliest token.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Of the weights; the published samples use bf16.")
    compile: bool = Field(False, description="Compile the step of a single token.")

    def guided_tokens(self, count: int) -> int:
        """How many of the first `count` tokens are guided."""
        if self.cfg_scale <= 1:
            return 0
        return count if self.cfg_interval < 0 else min(self.cfg_interval + 2, count)


# --- relations between keys ------------------------------------------------------------------------------------------


def _heads_divide(c: GPTConfig) -> str | None:
    if c.size_problem():
        return None
    size = c.size()
    if size.dim % size.n_head:
        return f"{size.dim} cannot be shared among n_head {size.n_head}; use a multiple of it."
    if size.dim // size.n_head % 4:
        return f"needs heads of a multiple of 4 channels; dim / n_head is {size.dim // size.n_head}."
    return None


def _groups_divide(c: GPTConfig) -> str | None:
    if c.size_problem() or c.n_kv_head is None or c.size().n_head % c.n_kv_head == 0:
        return None
    return f"{c.n_kv_head} does not divide n_head {c.size().n_head}."


def _tokens_make_a_square(c: GPTConfig) -> str | None:
    if c.grid_side() ** 2 == c.block_size:
        return None
    return f"{c.block_size} is no square number; the tokens of an image are those of a square grid."


_SIZE_KEYS = size_keys(Size)
GPT_RELATIONS = [
    Relation(_SIZE_KEYS, GPTConfig.size_problem),
    Relation(("dim", *_SIZE_KEYS), _heads_divide),
    Relation(("n_kv_head", *_SIZE_KEYS), _groups_divide),
    Relation(("block_size",), _tokens_make_a_square),
]
