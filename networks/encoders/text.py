"""Text models that come with a vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from common.errors import UserError, first_line
from common.precision import frozen_precision
from networks.encoders.recognition import local_folder, model_source
from networks.interfaces import Conditioning

MAX_TOKENS = 64


class TextEncoder(nn.Module):
    """A frozen text model: texts -> embeddings of their tokens and one of the whole.

    Always in eval mode and without gradients, with fp32 weights; see `frozen_precision`. Embeddings are fp32.

    Args:
        backbone: a text model of the transformers library with a pooled output.
        tokenizer: the one that it was trained with; None where only sizes matter.
    """

    def __init__(self, backbone: nn.Module, tokenizer: Any | None):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @property
    def width(self) -> int:
        """Channels of the embeddings."""
        return self.backbone.config.hidden_size

    def train(self, mode: bool = True) -> TextEncoder:
        """Stay in eval mode: the text model is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Conditioning:
        """B texts, cut or padded to 64 tokens each -> embeddings [B, D], tokens [B, 64, D], mask [B, 64]."""
        assert self.tokenizer is not None, "this text model was built without its tokenizer"
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        device = next(self.backbone.parameters()).device
        ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        with frozen_precision(device):
            output = self.backbone(input_ids=ids, attention_mask=mask)
        return Conditioning(output.pooler_output.float(), output.last_hidden_state.float(), mask.bool())


def load_text_tokenizer(vfm_name: str, revision: str | None) -> Any:
    """The text tokenizer of a model folder or hub id.

    Raises: UserError if there is none, or it has no padding token.
    """
    from transformers import AutoTokenizer

    source = model_source(vfm_name)
    folder = local_folder(vfm_name)
    if folder is not None and not (folder / "tokenizer_config.json").is_file():
        raise UserError(
            f"encoder.vfm_name: the folder {vfm_name!r} has no tokenizer_config.json, and a decoder conditional on "
            "texts needs the text tokenizer; give the folder of the complete model."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"encoder.vfm_name: the text tokenizer of {vfm_name!r}, which a decoder conditional on texts needs, could "
            f"not be loaded ({first_line(error)})."
        ) from error
    if tokenizer.pad_token_id is None:
        raise UserError(f"encoder.vfm_name: the text tokenizer of {vfm_name!r} has no padding token.")
    return tokenizer
