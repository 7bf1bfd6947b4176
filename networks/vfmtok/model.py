"""VFMTok as users meet it: loads from a folder or the hub, turns images in [-1, 1] into tokens and back.

image in [-1, 1] -> encode -> tokens, z -> decode -> sample in [-1, 1]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.value_range import signed_to_unit, uint8_to_unit, unit_to_signed
from networks.autoencoder import DecoderOutput
from networks.model_card import CardText
from networks.user_model import UserModel
from networks.vfmtok.config import VFMTokConfig
from networks.vfmtok.resize import resize_to_model
from networks.vfmtok.tokenizer import VFMTokTokenizer

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class TokenOutput:
    """What `VFMTok.encode` returns.

    Attributes:
        tokens: indices of the codes [B, 1, n, n], int64, in raster order of the region queries.
        z: the codes themselves [B, c, n, n], fp32.
    """

    tokens: Tensor
    z: Tensor


class VFMTok(UserModel):
    """VFMTok (arXiv:2507.08441): region tokens of a frozen vision foundation model, quantised by one codebook.

    Images have one size, `image_multiple` pixels on both sides; `preprocess` brings pictures to it. See `UserModel`.
    """

    model_type = "vfmtok"
    tokenizer: VFMTokTokenizer
    config: VFMTokConfig

    @staticmethod
    def config_of(tokenizer: VFMTokTokenizer) -> VFMTokConfig:
        return tokenizer.config

    def card_text(self) -> CardText:
        side, count, codes = self.image_multiple, self.config.region_encoder.num_tokens, self.config.codebook.vocab_size
        return CardText(
            name="VFMTok",
            paper="2507.08441",
            tags=("vfmtok", "visual-tokenizer", "discrete-tokenizer"),
            about=f"images <-> {count} tokens of {codes:,} codes. It takes {side} x {side} pixels",
            use=(
                "from networks import VFMTok\n\n"
                'model = VFMTok.from_pretrained("PATH OR ID OF THIS MODEL")\n'
                f"tokens = model.encode(images).tokens  # images: [B, 3, {side}, {side}] in [-1, 1]\n"
                "reconstruction = model.decode_tokens(tokens).sample"
            ),
        )

    def encode(self, x: Tensor) -> TokenOutput:
        """Images [B, 3, S, S] in [-1, 1] -> their tokens.

        Raises: ShapeError if these are no images of the model's size; UserError if they are integers.
        """
        if not x.is_floating_point():
            raise UserError(f"images: found {x.dtype}, expected floating point in [-1, 1]; for uint8 x / 127.5 - 1.")
        z = self._in_slices(self._encode, x)
        return TokenOutput(self.tokenizer.latent_to_tokens(z), z)

    def decode(self, z: Tensor) -> DecoderOutput:
        """Codes [B, c, n, n] -> images in [-1, 1], not clamped, in the model's `dtype`.

        Raises: ShapeError if these are no codes of this model.
        """
        return DecoderOutput(self._in_slices(self._images, z))

    def decode_tokens(self, tokens: Tensor) -> DecoderOutput:
        """Tokens [B, 1, n, n] -> images, see `decode`.

        Raises: ShapeError if they do not fit; UserError if one is not the index of a code.
        """
        return self.decode(self.tokenizer.tokens_to_latent(tokens))

    def forward(self, sample: Tensor) -> DecoderOutput:
        """Reconstruct images [B, 3, S, S] in [-1, 1]."""
        return self.decode(self.encode(sample).z)

    def _encode(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.tokenizer.encode(signed_to_unit(images.float())).z

    def _images(self, z: Tensor) -> Tensor:
        with self._autocast():
            return self.tokenizer.decode(z.float()).reconstruction.to(self.dtype)

    def preprocess(self, picture: Image.Image) -> Tensor:
        """A picture of any size -> [1, 3, S, S] in [-1, 1] on the model's device, resized as published.

        The shape of the picture is not kept; crop it to a square first where that matters.
        """
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0)[None]
        return resize_to_model(unit_to_signed(uint8_to_unit(pixels)), self.image_multiple).to(self.device)
