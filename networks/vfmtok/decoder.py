"""The decoder side of VFMTok: codes -> images, and in training the frozen features that the codes should tell of."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from networks.interfaces import Decoded
from networks.vfmtok.config import VFMTokConfig
from networks.vfmtok.decode_transformer import DecodeTransformer
from networks.vfmtok.pixel_decoder import PixelDecoder


class Decoder(nn.Module):
    """Codes of region tokens -> transformer -> pixels, or predicted features."""

    def __init__(self, config: VFMTokConfig):
        super().__init__()
        c = config.region_encoder
        self.pixel_side = config.pixel_side()
        self.from_code = nn.Linear(config.codebook.vocab_width, c.width)
        self.transformer = DecodeTransformer(
            config.decode_transformer, c.width, c.num_tokens, config.feature_side(), config.feature_width()
        )
        self.pixels = PixelDecoder(config.pixel_decoder, c.width)

    def forward(self, z: Tensor) -> Decoded:
        """Codes [B, c, n, n] -> images [B, 3, S, S], nominally in [-1, 1], not clamped."""
        return Decoded(self.pixels(self.transformer(self._regions(z), self.pixel_side)), {})

    def predict_features(self, z: Tensor) -> Tensor:
        """Codes [B, c, n, n] -> what they tell of the encoder's last layer, [B, h w, D_vfm] in raster order."""
        return self.transformer.predict_features(self._regions(z))

    def _regions(self, z: Tensor) -> Tensor:
        """What both passes of the transformer start from, [B, N, D]."""
        return self.from_code(rearrange(z, "b c h w -> b (h w) c"))
