"""Angle between what CLIP (Radford et al. 2021) sees in an image and what its label says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError, first_line
from common.precision import full_precision
from common.resize import resize_images
from common.value_range import signed_to_unit
from losses.config import CLIPTermConfig
from losses.interfaces import Loss, LossInputs

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

CROP = 64
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def squared_angle(a: Tensor, b: Tensor) -> Tensor:
    """arccos(<a / |a|, b / |b|>)^2 of each row, in radians squared: [N, D], [N, D] -> [N].

    Computed as 2 arctan(|a' - b'| / |a' + b'|) of the unit vectors: also exact, with a finite gradient, where the
    rows point the same way.
    """
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return (2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))).square()


class CLIPLoss(Loss):
    """Mean over images of the squared angle between CLIP's image features and its features of the label text.

    Images above 64 pixels are cropped to one random 64 x 64 window, the same for the whole batch.
    """

    needs = frozenset({"reconstruction", "texts", "generator"})
    group = "adversarial"

    def __init__(self, config: CLIPTermConfig):
        super().__init__()
        self.clip, self.tokenizer = load_clip(config.clip_path)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> CLIPLoss:
        """Stay in eval mode: the network is a fixed measure."""
        return super().train(False)

    def forward(self, inputs: LossInputs) -> Tensor:
        images = random_crop(signed_to_unit(inputs.reconstruction.float()), CROP, inputs.generator)
        with full_precision(images.device):
            return squared_angle(self.image_features(images), self.text_features(inputs.texts)).mean()

    def image_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, D]."""
        side = self.clip.config.vision_config.image_size
        pixels = (resize_images(images, "bicubic", size=side) - self.mean) / self.std
        return self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        """B texts -> [B, D]; what does not fit into CLIP's context is cut off."""
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.clip.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.mean.device)
        pooled = self.clip.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return self.clip.text_projection(pooled)


def random_crop(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """One window of side x side pixels, the same for the whole batch; smaller images stay as they are."""
    height, width = images.shape[-2:]
    if min(height, width) <= side:
        return images
    top, left = (int(torch.randint(free + 1, (), generator=generator)) for free in (height - side, width - side))
    return images[..., top : top + side, left : left + side]


def load_clip(clip_path: str | None) -> tuple[CLIPModel, CLIPTokenizer]:
    """Frozen CLIP with its tokenizer, from a local folder.

    Raises: UserError if there is no such folder, or it does not hold a complete CLIP.
    """
    where = f"losses.clip.clip_path: found {clip_path!r}, expected the folder of a CLIP (the published model is "
    remedy = "openai/clip-vit-large-patch14, e.g. from `hf download ... --local-dir ...`); it is never downloaded."
    if clip_path is None or not os.path.isdir(path := os.path.expanduser(clip_path)):
        raise UserError(f"{where}{remedy}")
    from transformers import CLIPModel, CLIPTokenizer

    try:
        model, info = CLIPModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        tokenizer = CLIPTokenizer.from_pretrained(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{where}{remedy} It could not be loaded: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{where}{remedy} It lacks {len(missing)} weights, e.g. {missing[0]}.")
    return model.eval().requires_grad_(False), tokenizer
