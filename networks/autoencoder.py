"""The model as users meet it: loads from a folder or the hub, encodes and decodes images in [-1, 1].

    image in [-1, 1] -> encode -> latent_dist -> z -> decode -> sample in [-1, 1]

Shaped like the autoencoders of the diffusers library, so that it works as the `vae` of their pipelines; it does not
need that library.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError
from common.value_range import signed_to_unit
from networks.conditioning import Labels
from networks.config import ModelConfig
from networks.interfaces import Conditioning
from networks.latent import DiagonalGaussian, PointMass
from networks.latent_statistics import LatentStatistics
from networks.model_card import CardText
from networks.user_model import UserModel
from networks.vfm_vae import VFMVAETokenizer


@dataclass(frozen=True)
class EncoderOutput:
    """What `VFMVAE.encode` returns.

    Attributes:
        latent_dist: the posterior, in fp32: `sample(generator)`, `mode()`, `kl()`, `mean`, `std`. That of a discrete
            tokenizer is a single point, without `kl`.
        tokens: indices of the codes [B, K, h, w] of a discrete tokenizer with K codebooks; else None.
    """

    latent_dist: DiagonalGaussian | PointMass
    tokens: Tensor | None = None


@dataclass(frozen=True)
class DecoderOutput:
    """What `VFMVAE.decode` returns.

    Attributes:
        sample: images [B, 3, H, W], nominally in [-1, 1], not clamped.
    """

    sample: Tensor


class VFMVAE(UserModel):
    """VFM-VAE (arXiv:2510.18457): frozen vision foundation model, fused KL latent, progressive decoder.

    Both sides of an image must be multiples of `image_multiple` pixels; they may differ. See `UserModel`.
    """

    model_type = "vfm_vae"
    tokenizer: VFMVAETokenizer
    config: ModelConfig

    @staticmethod
    def config_of(tokenizer: VFMVAETokenizer) -> ModelConfig:
        """The tokenizer's shape, and no latent statistics."""
        return ModelConfig(**tokenizer.config.model_dump())

    def card_text(self) -> CardText:
        config, latent = self.config, ""
        if config.latents_std is not None:
            latent = (
                f"Latent: `scaling_factor` {config.scaling_factor:.5g} (1 over the standard deviation of all values); "
                "mean and standard deviation of each channel are in `config.json`."
            )
        return CardText(
            name="VFM-VAE",
            paper="2510.18457",
            tags=("vfm-vae", "visual-tokenizer", "autoencoder"),
            about=(
                f"images of any size whose sides are multiples of {self.image_multiple} pixels <-> latents of "
                f"{config.latent_channels} channels at 1/{config.latent.resolution_compression_factor} of the side. It "
                f"was built for {config.img_resolution} x {config.img_resolution} pixels"
            ),
            use=(
                "from networks import VFMVAE\n\n"
                'vae = VFMVAE.from_pretrained("PATH OR ID OF THIS MODEL")\n'
                "z = vae.encode(images).latent_dist.mode()  # images: [B, 3, H, W] in [-1, 1]\n"
                "reconstruction = vae.decode(z).sample"
            ),
            latent=latent,
        )

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[DiagonalGaussian | PointMass]:
        """Images [B, 3, H, W] in [-1, 1] -> the distribution of their latents [B, C, h, w]; and tokens, if discrete.

        Args:
            return_dict: False gives a tuple with the distribution.

        Raises: ShapeError if these are no images, or H or W is not a multiple of `image_multiple`; UserError if they
            are integers.
        """
        if not x.is_floating_point():
            raise UserError(f"images: found {x.dtype}, expected floating point in [-1, 1]; for uint8 x / 127.5 - 1.")
        encoded = self._in_slices(self._encode, x)
        if self.tokenizer.is_discrete:
            output = EncoderOutput(PointMass(encoded), self.tokenizer.latent_to_tokens(encoded))
        else:
            output = EncoderOutput(DiagonalGaussian(encoded))
        return output if return_dict else (output.latent_dist,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None, c: Labels = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents [B, C, h, w], not scaled -> images in [-1, 1], not clamped, in the model's `dtype`.

        Args:
            return_dict: False gives a tuple with the images.
            generator: taken for pipelines, which pass one; decoding draws nothing.
            c: labels of a conditional decoder, one per latent: texts, or one-hot classes [B, label_dim].

        Raises: UserError if labels are missing or superfluous; ShapeError if z or c does not suit the decoder.
        """
        conditioning = self.tokenizer.condition(c, len(z))
        images = self._in_slices(self._images, z, *([] if conditioning is None else [conditioning]))
        return DecoderOutput(images) if return_dict else (images,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        c: Labels = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Reconstruct images [B, 3, H, W] in [-1, 1].

        Args:
            sample: the images.
            sample_posterior: decode a sample of the posterior instead of its mode.
            generator: source of the sample's noise.
            c: labels, see `decode`.
        """
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict, c=c)

    def decode_tokens(self, tokens: Tensor, c: Labels = None) -> DecoderOutput:
        """Tokens [B, K, h, w] of a discrete tokenizer -> images, see `decode`.

        Raises: UserError if the tokenizer has none; ShapeError if they do not fit.
        """
        return self.decode(self.tokenizer.tokens_to_latent(tokens), c=c)

    def _encode(self, images: Tensor) -> Tensor:
        """Moments of the posterior, or the quantised latent."""
        with self._autocast():
            latent = self.tokenizer.encode(signed_to_unit(images.float()), noise=torch.zeros(()))
        return latent.z if latent.posterior is None else latent.posterior.moments

    def _images(self, z: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        with self._autocast():
            return self.tokenizer.decode(z.float(), conditioning).reconstruction.to(self.dtype)

    # --- statistics of the latent ----------------------------------------------------------------------------------

    @torch.no_grad()
    def measure_latents(self, batches: Iterable[Tensor], generator: torch.Generator | None = None) -> LatentStatistics:
        """Statistics of samples of the posterior over a data set.

        Args:
            batches: images [B, 3, H, W] in [-1, 1].
            generator: source of the samples' noise.
        """
        statistics = LatentStatistics(self.config.latent_channels)
        for images in batches:
            statistics.update(self.encode(images.to(self.device)).latent_dist.sample(generator))
        return statistics

    def store_statistics(self, statistics: LatentStatistics) -> None:
        """Put statistics of the latent into the configuration, where diffusion models look for them.

        `scaling_factor` is 1 over the standard deviation of all values (z * scaling_factor has unit variance);
        `latents_mean` and `latents_std` are those of each channel ((z - mean) / std has). A diffusion model is to use
        one of the two.

        Raises: UserError if the statistics are of too few images, or not finite.
        """
        values = {
            "scaling_factor": statistics.scaling_factor,
            "latents_mean": statistics.mean.tolist(),
            "latents_std": statistics.std.tolist(),
        }
        self.config = self.config.model_copy(update=values)
