"""What every model of an analysis is: one vector per image and output; most take the images themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.registry import import_object
from evaluation.alignment.config import ModelSection
from evaluation.alignment.models import FEATURE_MODELS
from networks.config import TokenizerConfig

ReadShape = Callable[[str], TokenizerConfig]


class FeatureModel:
    """A frozen model in eval mode.

    Attributes:
        outputs: names of what it gives for each image, in order.
        weights_sha256: fingerprint of its weights.
    """

    outputs: tuple[str, ...]
    weights_sha256: str


class ImageModel(FeatureModel, ABC):
    """A model that takes images.

    They come transformed, in [0, 1] and of any size; the model's own resizing and normalisation follow. Sides that do
    not divide are filled up by reflection at the right and bottom.
    """

    @abstractmethod
    def features(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in [0, 1] -> {output: float32 [B, D]}; an image's do not depend on its neighbours.

        Args:
            names: one per image; random draws are keyed by them.
        """


class LatentModel(ImageModel):
    """A model whose one feature is the mean of its latent over positions."""

    outputs = ("latent",)

    def features(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return {"latent": self.latents(images, names).mean((2, 3))}

    @abstractmethod
    def latents(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> z, float32 [B, C, h, w]; see `features`."""

    def stated_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation [C] by which diffusion models are to normalise z, if the model states them."""
        return None


def load_model(section: ModelSection, device: torch.device, read_shape: ReadShape) -> FeatureModel:
    """The model that a section describes.

    Args:
        read_shape: reads the YAML of a tokenizer.

    Raises: UserError if it cannot be loaded.
    """
    return import_object(FEATURE_MODELS[section.kind])(section, device, read_shape)


def fill_up_sides(images: Tensor, multiple: int) -> Tensor:
    """Reflect images at the right and bottom border until both sides are multiples: [B, C, H', W'].

    The border pixel is not repeated; an image smaller than what is missing is reflected more than once.
    """
    for axis in (2, 3):
        side = images.shape[axis]
        target = -(-side // multiple) * multiple
        if target > side:
            images = images.index_select(axis, _reflected(side, target, images.device))
    return images


def _reflected(side: int, target: int, device: torch.device) -> Tensor:
    period = max(2 * (side - 1), 1)
    place = torch.arange(target, device=device) % period
    return torch.where(place < side, place, period - place)
