"""VFMTok: frozen vision foundation model -> region tokens -> codes -> pixels and features (arXiv 2507.08441).

images -> encoder features -> region tokens -> codes -> latent z -> map -> images
                                                                \\-> predicted features (training)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ShapeError, UserError
from common.value_range import Rounding
from networks.conditioning import Labels
from networks.encoders.base import VisionEncoder
from networks.interfaces import Decoded, Features, Latent
from networks.quantizer import MultiCodebookQuantizer
from networks.vfmtok.config import VFMTokConfig
from networks.vfmtok.decoder import Decoder
from networks.vfmtok.region_encoder import RegionEncoder


@dataclass(frozen=True)
class VFMTokOutput:
    """A whole pass through the tokenizer.

    Attributes:
        latent: the encoder side's result.
        decoded: the images made of it.
        predicted: features of the frozen encoder's last layer as the codes tell them, [B, h w, D_vfm], in raster order.
    """

    latent: Latent
    decoded: Decoded
    predicted: Tensor


class VFMTokTokenizer(nn.Module):
    """The discrete tokenizer as in the paper's figure. Images go in as [0, 1] and come out as [-1, 1].

    Its latent z is the map [B, c, n, n] of the codes of its n x n region tokens; as indices they are [B, 1, n, n].

    Args:
        config: its shape.
        encoder: the frozen encoder; None builds everything else (to count parameters, or only to decode).

    Attributes:
        image_multiple: the side of an image, in pixels; both sides of every image must have it.
        png_rounding: how published images are brought to 8 bits.
        optional_weights: prefix of weights that may be absent: how often codes are used, which is followed in training.
    """

    is_discrete = True
    png_rounding: Rounding = "nearest"
    optional_weights = "quantizer.codebooks.0.usage"

    def __init__(self, config: VFMTokConfig, encoder: VisionEncoder | None):
        super().__init__()
        self.config = config
        self.image_multiple = config.img_resolution
        self.encoder = encoder
        c, codebook = config.region_encoder, config.codebook
        self.region_encoder = RegionEncoder(c, config.encoder.patch_in_dimensions)
        self.to_code = nn.Linear(c.width, codebook.vocab_width)
        self.quantizer = MultiCodebookQuantizer(codebook.vocab_size, codebook.vocab_width, l2_norm=codebook.l2_norm)
        _start_codes(self.quantizer)
        self.decoder = Decoder(config)

    @classmethod
    def for_weights(
        cls, config: VFMTokConfig, encoder: VisionEncoder | None, state: Mapping[str, Tensor], where: str
    ) -> VFMTokTokenizer:
        """A tokenizer that weights (own names) fit, as far as the configuration is theirs."""
        return cls(config, encoder)

    def trainable_parts(self) -> nn.ModuleDict:
        """Everything but the frozen encoder."""
        return nn.ModuleDict({name: part for name, part in self.named_children() if name != "encoder"})

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[c, n, n] of the latent of an image of height x width pixels."""
        side = self.config.region_encoder.side
        return self.config.codebook.vocab_width, side, side

    def require_image_size(self, height: int, width: int) -> None:
        """Refuse images of another size than the model's: its position embeddings are those of one grid.

        Raises: ShapeError.
        """
        side = self.config.img_resolution
        if (height, width) != (side, side):
            raise ShapeError(
                f"images of {height} x {width} pixels (height x width) do not fit this tokenizer, which takes "
                f"{side} x {side} only; crop or resize them (tools: --resolution {side})."
            )

    def encode(self, images: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Latent:
        """Images [B, 3, S, S] in [0, 1] -> codes, and the latent z made of them.

        Args:
            generator, noise: taken as every tokenizer takes them; nothing is drawn.

        Raises: ShapeError if these are no images of the model's size.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ShapeError(f"found images of shape {list(images.shape)}, expected [B, 3, height, width].")
        self.require_image_size(*images.shape[-2:])
        assert self.encoder is not None, "this tokenizer was built without its encoder"
        return self.fuse(self.encoder(images))

    def fuse(self, features: Features) -> Latent:
        """The encoder side behind the frozen encoder: features -> what `encode` returns."""
        codes = self.to_code(self.region_encoder(features))
        n = self.config.region_encoder.side
        quantized = self.quantizer(rearrange(codes, "b (h w) c -> b c h w", h=n))
        return Latent(quantized.z, None, quantized, features, None)

    def latent_to_tokens(self, z: Tensor) -> Tensor:
        """See `MultiCodebookQuantizer.latent_to_tokens`."""
        return self.quantizer.latent_to_tokens(z)

    def tokens_to_latent(self, tokens: Tensor) -> Tensor:
        """See `MultiCodebookQuantizer.tokens_to_latent`."""
        return self.quantizer.tokens_to_latent(tokens)

    def condition(self, c: Labels, count: int) -> None:
        """What the decoder depends on besides the latent: nothing. Raises UserError if there are labels."""
        if c is not None:
            raise UserError("labels: this tokenizer's decoder is not conditional; leave them out.")

    def decode(self, z: Tensor, c: Labels = None) -> Decoded:
        """Latent [B, c, n, n] -> images [B, 3, S, S] in [-1, 1], not clamped.

        Args:
            c: taken as every tokenizer takes it; there are no labels.

        Raises: ShapeError if z is not a latent of this model; UserError if there are labels.
        """
        self.condition(c, len(z))
        expected = self.latent_shape(self.config.img_resolution, self.config.img_resolution)
        if z.ndim != 4 or tuple(z.shape[1:]) != expected or not len(z):
            raise ShapeError(f"found latents of shape {list(z.shape)}, expected [B, {', '.join(map(str, expected))}].")
        return self.decoder(z)

    def forward(self, images: Tensor) -> VFMTokOutput:
        """A whole pass: images [B, 3, S, S] in [0, 1] -> codes, reconstruction and predicted features."""
        latent = self.encode(images)
        return VFMTokOutput(latent, self.decoder(latent.z), self.decoder.predict_features(latent.z))


@torch.no_grad()
def _start_codes(quantizer: MultiCodebookQuantizer) -> None:
    """Let the codes start as random directions of unit norm, and not near 0."""
    for codebook in quantizer.codebooks:
        codebook.codes.copy_(F.normalize(codebook.codes, dim=-1))
