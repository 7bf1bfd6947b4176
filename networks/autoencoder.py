"""The model as users meet it: loads from a folder or the hub, encodes and decodes images in [-1, 1].

    image in [-1, 1] -> encode -> latent_dist -> z -> decode -> sample in [-1, 1]

Shaped like the autoencoders of the diffusers library, so that it works as the `vae` of their pipelines; it does not
need that library.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.value_range import signed_to_unit, uint8_to_unit, unit_to_signed, unit_to_uint8
from networks.conditioning import Labels
from networks.config import ModelConfig
from networks.interfaces import Conditioning
from networks.latent import DiagonalGaussian, PointMass
from networks.latent_statistics import LatentStatistics
from networks.model_card import ModelFacts
from networks.pretrained import facts_of, load_model, save_model
from networks.vfm_vae import VFMVAETokenizer

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)


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


class VFMVAE(nn.Module):
    """VFM-VAE (arXiv:2510.18457): frozen vision foundation model, fused KL latent, progressive decoder.

    The weights are kept in fp32. `to(dtype)`, `half()` and `bfloat16()` choose what is computed in, under autocast,
    as in training. Both sides of an image must be multiples of `image_multiple` pixels; they may differ.

    Args:
        tokenizer: the networks; put into eval mode.
        config: what `config.json` says; None: the tokenizer's shape, and no latent statistics.
        facts: where the model comes from; None: only its encoder is known.

    Raises: UserError on `to` a precision other than float32, float16 and bfloat16.
    """

    def __init__(self, tokenizer: VFMVAETokenizer, config: ModelConfig | None = None, facts: ModelFacts | None = None):
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config or ModelConfig(**tokenizer.config.model_dump())
        self.facts = facts or facts_of(tokenizer)
        self._dtype = torch.float32
        self._images_per_slice: int | None = None
        self.eval()

    # --- loading and saving ----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        torch_dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        weights: Literal["ema", "raw"] = "ema",
        vfm_name: str | None = None,
    ) -> VFMVAE:
        """A model from a folder or the hub, in eval mode.

        Args:
            name: a folder that `save_pretrained` wrote, a checkpoint or run folder, or a hub id `organisation/name`.
            revision: branch, tag or commit on the hub; None: the newest.
            subfolder: where in it the model lies.
            torch_dtype: what is computed in.
            device: where the model goes.
            weights: "ema", the EMA of the weights, or "raw", the weights themselves where the folder has both.
            vfm_name: folder or hub id of the frozen encoder, if it is not where the configuration says.

        Raises: CheckpointError if the model is missing, damaged or does not fit, or its encoder is another one than it
            was trained on; UserError if the encoder cannot be loaded.
        """
        loaded = load_model(name, revision, subfolder, weights, vfm_name)
        return cls(loaded.tokenizer, loaded.config, loaded.facts).to(device, torch_dtype)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        include_encoder: bool = False,
        licence: str | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a folder that `from_pretrained` reads: safetensors, `config.json`, manifest and a model card.

        Args:
            folder: must not exist yet.
            include_encoder: copy the frozen encoder into it, so that nothing else is needed to load it; else it is
                referenced by name, revision and hash.
            licence: of the weights, e.g. `apache-2.0`; None: that of the weights that they were made from, if any.
            metrics: measured numbers for the card, such as what `tools/reconstruct/evaluate.py --output-json` writes;
                None: those that the model was loaded with.

        Raises: CheckpointError if the folder exists or cannot be written.
        """
        facts = self.facts
        if licence is not None:
            facts = replace(facts, licence=licence)
        if metrics is not None:
            facts = replace(facts, metrics=dict(metrics))
        save_model(Path(folder), self.tokenizer, self.config, facts, include_encoder)

    def push_to_hub(
        self,
        model_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        message: str = "Upload model",
        **options: Any,
    ) -> str:
        """Put the model on the hub, with its card.

        Args:
            model_id: `organisation/name`; made if there is no such repository.
            private: for a repository that is made.
            revision: branch to write to.
            message: of the commit.
            options: those of `save_pretrained`.

        Returns: address of the repository.
        Raises: CheckpointError if the hub cannot be reached or refuses.
        """
        from networks.hub import upload_model

        encoder = self.config.encoder.vfm_name
        if not options.get("include_encoder") and Path(encoder).expanduser().is_dir():
            log.warning(
                "%s refers to its frozen encoder as %s, a folder of this machine, where nobody else will find it; push "
                "with include_encoder=True, or name the encoder by its hub id.",
                model_id,
                encoder,
            )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder, **options)
            return upload_model(folder, model_id, private, message, revision)

    # --- encoding and decoding -------------------------------------------------------------------------------------

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

    def _in_slices(self, work: Callable[..., Tensor], *batches: Tensor | Conditioning) -> Tensor:
        """`work` on the batches, or on slices of all of them, one after the other."""
        size = self._images_per_slice
        if size is None:
            return work(*batches)
        starts = range(0, len(batches[0]), size)
        return torch.cat([work(*(batch[start : start + size] for batch in batches)) for start in starts])

    def enable_slicing(self, images_per_slice: int = 1) -> None:
        """Encode and decode a batch in slices, which bounds the memory that is needed.

        Raises: UserError if `images_per_slice` is below 1.
        """
        if images_per_slice < 1:
            raise UserError(f"images_per_slice: found {images_per_slice}, expected at least 1.")
        self._images_per_slice = images_per_slice

    def disable_slicing(self) -> None:
        """Encode and decode a batch at once."""
        self._images_per_slice = None

    @property
    def image_multiple(self) -> int:
        """Both sides of an image, in pixels, must be multiples of this."""
        return self.tokenizer.image_multiple

    # --- pictures --------------------------------------------------------------------------------------------------

    def preprocess(self, picture: Image.Image) -> Tensor:
        """A picture -> [1, 3, H, W] in [-1, 1] on the model's device: its centre, cropped to multiples that fit."""
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0)[None]
        height, width = (max(side // self.image_multiple, 1) * self.image_multiple for side in pixels.shape[-2:])
        top, left = ((whole - part) // 2 for whole, part in zip(pixels.shape[-2:], (height, width), strict=True))
        pixels = pixels[..., max(top, 0) :, max(left, 0) :][..., :height, :width]
        return unit_to_signed(uint8_to_unit(pixels)).to(self.device)

    def postprocess(self, images: Tensor) -> list[Image.Image]:
        """Images [B, 3, H, W] in [-1, 1] -> pictures, clamped and rounded to 8 bits."""
        from PIL import Image

        pixels = unit_to_uint8(signed_to_unit(images.detach()), "nearest").movedim(1, -1).cpu().numpy()
        return [Image.fromarray(picture) for picture in pixels]

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

    # --- device and precision --------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.tokenizer.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in, and what decoded images come in."""
        return self._dtype

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VFMVAE:
        """What `to`, `half`, `cuda` and their kin end in: weights follow a device, but keep their precision."""
        dtype = fn(torch.zeros((), dtype=self._dtype)).dtype
        if dtype not in PRECISIONS:
            raise UserError(f"dtype: found {dtype}, expected one of {', '.join(map(str, PRECISIONS))}.")
        self._dtype = dtype

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)
