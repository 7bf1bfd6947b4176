"""What the models that users meet have in common: loading, saving, slices, pictures, device and precision."""

from __future__ import annotations

import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import CheckpointError, UserError
from common.value_range import signed_to_unit, uint8_to_unit, unit_to_signed, unit_to_uint8
from networks.checkpoint.folder import Shape
from networks.checkpoint.loading import Tokenizer
from networks.interfaces import Conditioning
from networks.model_card import CardText, ModelFacts
from networks.pretrained import facts_of, load_model, save_model

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)


class UserModel(nn.Module, ABC):
    """A tokenizer as users meet it: images in [-1, 1] on both sides.

    The weights are kept in fp32. `to(dtype)`, `half()` and `bfloat16()` choose what is computed in, under autocast,
    as in training.

    Args:
        tokenizer: the networks; put into eval mode.
        config: what `config.json` says; None: the tokenizer's shape alone.
        facts: where the model comes from; None: only its encoder is known.

    Attributes:
        model_type: what checkpoints of its kind call themselves.

    Raises: UserError on `to` a precision other than float32, float16 and bfloat16.
    """

    model_type: ClassVar[str]

    def __init__(self, tokenizer: Tokenizer, config: Shape | None = None, facts: ModelFacts | None = None):
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config or self.config_of(tokenizer)
        self.facts = facts or facts_of(tokenizer)
        self._dtype = torch.float32
        self._images_per_slice: int | None = None
        self.eval()

    # --- what a subclass says ------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def config_of(tokenizer: Tokenizer) -> Shape:
        """What `config.json` says of a tokenizer of which nothing else is known."""

    @abstractmethod
    def card_text(self) -> CardText:
        """What the model card says of this kind of model."""

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
    ) -> Self:
        """A model from a folder or the hub, in eval mode.

        Args:
            name: a folder that `save_pretrained` wrote, a checkpoint or run folder, or a hub id `organisation/name`.
            revision: branch, tag or commit on the hub; None: the newest.
            subfolder: where in it the model lies.
            torch_dtype: what is computed in.
            device: where the model goes.
            weights: "ema", the EMA of the weights, or "raw", the weights themselves where the folder has both.
            vfm_name: folder or hub id of the frozen encoder, if it is not where the configuration says.

        Raises: CheckpointError if the model is missing, damaged, of another kind or does not fit, or its encoder is
            another one than it was trained on; UserError if the encoder cannot be loaded.
        """
        loaded = load_model(name, revision, subfolder, weights, vfm_name)
        kind = loaded.config.MODEL_TYPE
        if kind != cls.model_type:
            raise CheckpointError(f"{name}: is a {kind}, not a {cls.model_type}; load it with the class for those.")
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
        save_model(Path(folder), self.tokenizer, self.config, facts, self.card_text(), include_encoder)

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

    # --- slices ------------------------------------------------------------------------------------------------------

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

    # --- pictures --------------------------------------------------------------------------------------------------

    @property
    def image_multiple(self) -> int:
        """Both sides of an image, in pixels, must be multiples of this."""
        return self.tokenizer.image_multiple

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

    # --- device and precision --------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.tokenizer.trainable_parts().parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in, and what decoded images come in."""
        return self._dtype

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `half`, `cuda` and their kin end in: weights follow a device, but keep their precision."""
        dtype = fn(torch.zeros((), dtype=self._dtype)).dtype
        if dtype not in PRECISIONS:
            raise UserError(f"dtype: found {dtype}, expected one of {', '.join(map(str, PRECISIONS))}.")
        self._dtype = dtype

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)
