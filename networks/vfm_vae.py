"""VFM-VAE: frozen vision foundation model -> fused latent, KL or discrete -> progressive decoder (arXiv 2510.18457).

images -> encoder features -> moments -> posterior -> latent z -> decoder -> images of all scales
                              chunks  -> codes     (discrete mode)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.errors import CheckpointError, ShapeError, UserError
from common.value_range import Rounding
from networks.alignment import AlignmentHead
from networks.compression import Compression
from networks.conditioning import Labels, conditioning_of, text_width
from networks.config import TokenizerConfig
from networks.decoder.decoder import Decoder
from networks.encoders.base import VisionEncoder
from networks.equivariance import IDENTITY, EquivarianceTransform
from networks.interfaces import Conditioning, Decoded, Features, Latent, TokenizerOutput
from networks.latent import DiagonalGaussian
from networks.layers.modulated_conv3x3 import LayerNoise, NoiseMode
from networks.quantizer import MultiCodebookQuantizer


class VFMVAETokenizer(nn.Module):
    """The tokenizer as in the paper's figure. Images go in as [0, 1] and come out as [-1, 1].

    Args:
        config: its shape.
        encoder: the frozen encoder; None builds everything else (to count parameters, or only to decode).
        noise: give the decoder's ConvNeXt layers fixed noise maps (`legacy` weights); None: what the configuration
            says.

    Attributes:
        image_multiple: both sides of an image, in pixels, must be multiples of this.
        png_rounding: how published images are brought to 8 bits.
        optional_weights: prefix of weights that only training uses, which may be absent or left over.

    Raises: UserError if the decoder is conditional on texts, and there is no encoder with a text model.
    """

    png_rounding: Rounding = "truncate"
    optional_weights = "alignment."

    def __init__(self, config: TokenizerConfig, encoder: VisionEncoder | None, noise: bool | None = None):
        super().__init__()
        self.config = config
        self.has_noise = bool(config.decoder.legacy) if noise is None else noise
        self.image_multiple = config.image_multiple()
        self.encoder = encoder
        unshuffle = [side // config.latent_side() for side in config.encoder.token_sides(config.img_resolution)]
        self.compression = Compression(config.encoder, config.latent, unshuffle)
        self.is_discrete = config.latent.compression_mode == "discrete"
        if self.is_discrete:
            c = config.latent
            self.quantizer = MultiCodebookQuantizer(c.vocab_size, c.vocab_width, c.num_codebooks)
        if config.alignment_head:
            last = config.encoder.patch_from_layers.index(-1)
            self.alignment = AlignmentHead(config.latent.channels(), config.encoder.patch_in_dimensions[last])
        self.decoder = Decoder(config, self.has_noise, text_width(encoder) if config.decoder.reads_texts else 0)

    @classmethod
    def for_weights(
        cls, config: TokenizerConfig, encoder: VisionEncoder | None, state: Mapping[str, Tensor], where: str
    ) -> VFMVAETokenizer:
        """A tokenizer that weights (own names) fit: with noise maps, if they have some.

        Raises: CheckpointError if the configuration says otherwise.
        """
        return cls(config, encoder, noise=expected_noise(config, state, where))

    def trainable_parts(self) -> nn.ModuleDict:
        """Everything but the frozen encoder."""
        return nn.ModuleDict({name: part for name, part in self.named_children() if name != "encoder"})

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[C, h, w] of the latent of an image of height x width pixels."""
        factor = self.config.latent.resolution_compression_factor
        return self.config.latent.channels(), height // factor, width // factor

    def require_image_size(self, height: int, width: int) -> None:
        """Refuse an image size that the encoder's and the latent's strides do not divide.

        Raises: ShapeError that names the multiple of pixels that is needed and the nearest smaller size that fits.
        """
        multiple = self.image_multiple
        if height % multiple or width % multiple:
            fitting = [max(side // multiple, 1) * multiple for side in (height, width)]
            raise ShapeError(
                f"images of {height} x {width} pixels (height x width) do not fit this tokenizer; expected both sides "
                f"to be multiples of {multiple}. Crop or resize them, e.g. to {fitting[0]} x {fitting[1]}."
            )

    def encode(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        transform: EquivarianceTransform = IDENTITY,
    ) -> Latent:
        """Images [B, 3, H, W] in [0, 1] -> posterior and a sample z of it; in discrete mode codes, and z made of them.

        H and W may differ from each other and from the side that the model is built for.

        Args:
            generator, noise: where the sample's noise comes from, see `DiagonalGaussian.sample`; a noise of zeros gives
                the mode. Discrete mode draws nothing.
            transform: its input branch makes the encoder see a smaller image.

        Raises: ShapeError if these are no images, or H or W is not a multiple of `image_multiple`.
        """
        _require_maps(images, "images", 3)
        self.require_image_size(*images.shape[-2:])
        assert self.encoder is not None, "this tokenizer was built without its encoder"
        return self.fuse(self.encoder(images, transform.input_scale), generator, noise)

    def fuse(self, features: Features, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Latent:
        """The encoder side behind the frozen encoder: features -> what `encode` returns."""
        compressed = self.compression(features).float()
        posterior = quantized = None
        if self.is_discrete:
            quantized = self.quantizer(compressed)
            z = quantized.z
        else:
            posterior = DiagonalGaussian(compressed)
            z = posterior.sample(generator, noise)
        projected = self.alignment(z) if self.config.alignment_head else None
        return Latent(z, posterior, quantized, features, projected)

    def latent_to_tokens(self, z: Tensor) -> Tensor:
        """See `MultiCodebookQuantizer.latent_to_tokens`. Raises UserError in continuous mode."""
        return self._quantizer().latent_to_tokens(z)

    def tokens_to_latent(self, tokens: Tensor) -> Tensor:
        """See `MultiCodebookQuantizer.tokens_to_latent`. Raises UserError in continuous mode."""
        return self._quantizer().tokens_to_latent(tokens)

    def _quantizer(self) -> MultiCodebookQuantizer:
        if not self.is_discrete:
            raise UserError("this tokenizer has no tokens: its latent.compression_mode is continuous, not discrete.")
        return self.quantizer

    def condition(self, c: Labels, count: int) -> Conditioning | None:
        """Labels of `count` latents, in any form that `decode` takes, as what the decoder depends on."""
        text_encoder = None if self.encoder is None else self.encoder.text_encoder
        return conditioning_of(c, count, self.config.decoder, text_encoder)

    def decode(
        self,
        z: Tensor,
        c: Labels = None,
        truncation_psi: float = 1.0,
        noise_mode: NoiseMode = "const",
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """Latent [B, C, h, w] -> images in [-1, 1], not clamped.

        Args:
            c: labels of a conditional decoder: texts, one per latent (label_type text, cls2text), one-hot classes
                [B, label_dim] (cls2id), or what `condition` made of either. None for an unconditional one.
            truncation_psi: moves the style towards its running mean; 1 leaves it.
            noise_mode: noise of a decoder without ConvNeXt layers: its fixed maps, fresh noise per sample, or none.
            generator: source of `random` noise, on the device of z.

        Raises: UserError if labels are missing, superfluous or of the wrong kind, or there is no noise to choose;
            ShapeError if z or c has a shape that does not fit.
        """
        if self.config.decoder.use_convnext and noise_mode != "const":
            raise UserError(
                f"noise_mode: found {noise_mode!r}, but a decoder of ConvNeXt layers has only its fixed noise; "
                "leave it at 'const'."
            )
        _require_maps(z, "latents", self.config.latent.channels())
        conditioning = self.condition(c, len(z))
        return self.decoder(z, conditioning, truncation_psi, noise=LayerNoise(noise_mode, generator))

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        transform: EquivarianceTransform = IDENTITY,
        cut_at_latent: bool = False,
        update_average: bool = False,
        c: Labels = None,
        features: Features | None = None,
    ) -> TokenizerOutput:
        """A whole pass.

        Args:
            images: [B, 3, H, W] in [0, 1].
            generator: source of the posterior noise (continuous mode).
            transform: equivariance transform of this micro-batch.
            cut_at_latent: make the decoder's input a leaf, so that the decoder's gradient can be taken first and
                the encoder side's gradient built from it.
            update_average: advance the running mean of the styles.
            c: labels, see `decode`.
            features: what the frozen encoder makes of the images under this transform, if that is known already.
        """
        conditioning = self.condition(c, len(images))
        if features is None:
            latent = self.encode(images, generator, transform=transform)
        else:
            latent = self.fuse(features, generator)
        decoder_input = latent.z.detach().requires_grad_(latent.z.requires_grad) if cut_at_latent else latent.z
        decoded = self.decoder(transform.apply_to_latent(decoder_input), conditioning, update_average=update_average)
        return TokenizerOutput(latent, decoder_input, decoded)


def expected_noise(config: TokenizerConfig, state: Mapping[str, Tensor], where: str) -> bool:
    """Whether the decoder that fits these weights has noise maps.

    Raises: CheckpointError if the configuration says otherwise.
    """
    has_noise = has_noise_maps(state)
    if config.decoder.use_convnext and config.decoder.legacy not in (None, has_noise):
        raise CheckpointError(
            f"{where}: decoder.legacy is {str(config.decoder.legacy).lower()}, but the file "
            f"{'has' if has_noise else 'has no'} noise maps; set it to {str(has_noise).lower()} or null."
        )
    return has_noise


def has_noise_maps(state: Mapping[str, Tensor]) -> bool:
    """Whether weights (own names) have fixed noise maps in the decoder's layers: the `legacy` kind of ConvNeXt
    layers, and all layers that are not ConvNeXt."""
    return any(name.endswith(".noise_strength") for name in state)


def _require_maps(found: Tensor, what: str, channels: int) -> None:
    """Raise ShapeError unless there is at least one map of these channels."""
    if found.ndim != 4 or found.shape[1] != channels or not len(found):
        raise ShapeError(f"found {what} of shape {list(found.shape)}, expected [B, {channels}, height, width].")
