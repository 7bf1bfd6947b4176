"""Labels of a conditional decoder: texts or classes -> what the decoder depends on besides the latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import ShapeError, UserError
from networks.config import DecoderConfig
from networks.encoders.base import VisionEncoder
from networks.encoders.text import TextEncoder
from networks.interfaces import Conditioning

# Texts, one-hot classes [B, label_dim], either of them already embedded, or nothing for an unconditional decoder.
Labels = Sequence[str] | Tensor | Conditioning | None


def text_width(encoder: VisionEncoder | None) -> int:
    """Channels of the text embeddings that come with an encoder.

    Raises: UserError if there is no encoder with a text model.
    """
    if encoder is None or encoder.text_encoder is None:
        raise UserError(
            "decoder.conditional: true with texts needs the text model at encoder.vfm_name, which tells the width of "
            "its embeddings and is not here."
        )
    return encoder.text_encoder.width


def conditioning_of(
    c: Labels, count: int, config: DecoderConfig, text_encoder: TextEncoder | None
) -> Conditioning | None:
    """What a decoder depends on, from labels in any form.

    Args:
        c: labels.
        count: number of latents, each with a label of its own.
        config: the decoder's configuration.
        text_encoder: makes embeddings of texts.

    Raises: UserError if labels are missing, superfluous or of the wrong kind; ShapeError if their shape does not fit.
    """
    if not config.conditional:
        if c is not None:
            raise UserError("c: found labels, but this decoder is unconditional (decoder.conditional: false).")
        return None
    if c is None:
        raise UserError(
            f"c: missing, but this decoder is conditional (label_type {config.label_type}); give {_wanted(config)}."
        )
    if isinstance(c, Conditioning):
        _require(len(c.label) == count, f"{len(c.label)} labels", count, config)
        if config.use_cross_attn and c.tokens is None:
            raise ShapeError("c: found no tokens of the texts; expected them for cross-attention, [B, L, D].")
        return c
    if config.reads_classes:
        _require(isinstance(c, Tensor), type(c).__name__, count, config)
        _require(c.shape == (count, config.label_dim), f"shape {list(c.shape)}", count, config)
        return Conditioning(c)
    is_texts = not isinstance(c, str | Tensor) and all(isinstance(text, str) for text in c)
    _require(is_texts, type(c).__name__, count, config)
    _require(len(c) == count, f"{len(c)} texts", count, config)
    assert text_encoder is not None, "a decoder that reads texts is built with a text encoder"
    return text_encoder(c)


def _wanted(config: DecoderConfig) -> str:
    return f"one-hot classes [B, {config.label_dim}]" if config.reads_classes else "a list of texts, one per latent"


def _require(fits: bool, found: str, count: int, config: DecoderConfig) -> None:
    if not fits:
        raise ShapeError(f"c: found {found} for {count} latents; expected {_wanted(config)}.")


class TextCache:
    """Embeddings of texts that come again and again, such as those of classes; each is computed once.

    Args:
        encoder: makes the embeddings.
        with_tokens: also keep the embeddings of the tokens, which only cross-attention looks at.
    """

    def __init__(self, encoder: TextEncoder, with_tokens: bool):
        self._encoder = encoder
        self._with_tokens = with_tokens
        self._known: dict[str, Conditioning] = {}

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """Texts -> their embeddings."""
        rows = [self._embedding(text) for text in texts]
        label = torch.cat([row.label for row in rows])
        if not self._with_tokens:
            return Conditioning(label)
        return Conditioning(label, torch.cat([row.tokens for row in rows]), torch.cat([row.mask for row in rows]))

    def _embedding(self, text: str) -> Conditioning:
        """Computed alone: its last bits must not depend on the batch that a text is first seen in, which differs
        between a run and the same run resumed."""
        if text not in self._known:
            row = self._encoder([text])
            self._known[text] = row if self._with_tokens else Conditioning(row.label)
        return self._known[text]
