"""Tokens of images, as prefetch and training take them from a tokenizer with one codebook."""

from __future__ import annotations

from torch import Tensor, nn

from common.errors import UserError
from common.value_range import uint8_to_unit
from data.token_kind import STORED_CODES, TokenKind
from networks.fingerprint import weights_fingerprint


def token_kind(model: nn.Module, height: int, width: int) -> TokenKind:
    """What a tokenizer's tokens are for images of `height` x `width` pixels.

    Raises: UserError if it has none, more than one codebook, or more codes than files of tokens can hold; ShapeError if
        images of that size do not fit it.
    """
    model.require_image_size(height, width)
    if not model.is_discrete:
        raise UserError(
            "this tokenizer has no tokens, for its latent is continuous; an autoregressive model needs a discrete one."
        )
    books, codes = len(model.quantizer.codebooks), model.quantizer.size
    if books != 1:
        raise UserError(
            f"this tokenizer has {books} codebooks, so {books} tokens at each position; an autoregressive model of "
            "tokens needs one with a single codebook."
        )
    if codes > STORED_CODES:
        raise UserError(f"this tokenizer has {codes} codes; tokens are stored as uint16, which hold {STORED_CODES}.")
    _, *grid = model.latent_shape(height, width)
    return TokenKind(codes, tuple(grid), weights_fingerprint(model.state_dict()))


def tokens_of_images(model: nn.Module, images: Tensor) -> Tensor:
    """8-bit images [B, 3, H, W] -> tokens row by row, int64 [B, N]; the model is in eval mode, with one codebook."""
    return model.encode(uint8_to_unit(images)).quantized.indices.flatten(1)
