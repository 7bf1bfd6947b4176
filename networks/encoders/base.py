"""What every family of frozen encoders has in common: resize, normalise, run without gradients, hand out layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ShapeError, UserError
from common.precision import frozen_precision
from networks.interfaces import Features

if TYPE_CHECKING:
    from networks.encoders.text import TextEncoder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class VisionEncoder(nn.Module):
    """A frozen vision foundation model: images -> token maps of chosen layers.

    A family says how its images are resized and normalised, loads its backbone, and runs it. Always in eval mode and
    without gradients, with fp32 weights; see `frozen_precision`. Features leave it in fp32.

    Args:
        backbone: the pretrained model.
        layers: hidden states to return. 0 is the embedding, k > 0 the output of block k, -1 the last one after the
            final norm, -2 the last one before it, -3 the block before that.
        scale_factor: images are resized by this first.

    Attributes:
        model_config: the model's own `config.json`, which goes with a copy of its weights; None if it has none.

    Attributes of a family:
        interpolation: how images are resized.
        antialias_prescale: whether the input branch of the equivariance regularisation resizes with antialiasing.
        mean, std: normalisation of pixels in [0, 1].
        reference_names: weights whose names differ, as (name here, name in the reference); {} stands for a number.
    """

    interpolation: ClassVar[str] = "bilinear"
    antialias_prescale: ClassVar[bool] = True
    mean: tuple[float, float, float] = HALF_MEAN
    std: tuple[float, float, float] = HALF_STD
    reference_names: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, backbone: nn.Module, layers: list[int], scale_factor: float):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.layers = list(layers)
        self.scale_factor = scale_factor
        self.model_config: dict[str, Any] | None = None
        self.text_encoder: TextEncoder | None = None  # set where the decoder is conditional on texts
        self.register_buffer("pixel_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)
        for layer in layers:
            self.resolve_layer(layer)

    # What a family provides.

    @classmethod
    def load_backbone(cls, vfm_name: str, revision: str | None) -> nn.Module:
        """The pretrained model from a folder or hub id, fp32. Raises UserError if it cannot be had whole."""
        raise NotImplementedError

    @classmethod
    def empty_backbone(cls, vfm_name: str, revision: str | None) -> nn.Module | None:
        """The model without its weights, on the current device (meta, to count); None if its files are out of reach."""
        raise NotImplementedError

    @classmethod
    def load_text_encoder(cls, vfm_name: str, revision: str | None) -> TextEncoder:
        """The text model of the same folder or hub id. Raises UserError if the family has none, or it is not whole."""
        raise UserError(f"decoder.conditional: true with texts, but the encoder {vfm_name!r} has no text model.")

    @classmethod
    def empty_text_encoder(cls, vfm_name: str, revision: str | None) -> TextEncoder | None:
        """The text model as `empty_backbone` gives the vision model, and without a tokenizer."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """Number of blocks."""
        raise NotImplementedError

    @property
    def patch_size(self) -> int:
        """Side in pixels of the patch behind one token."""
        raise NotImplementedError

    def layer_patch_size(self, layer: int) -> int:
        """The same of one layer, where a family merges tokens on the way."""
        return self.patch_size

    @property
    def pixel_multiple(self) -> int:
        """Both sides of what the backbone sees must be multiples of this."""
        return self.patch_size

    def layer_channels(self, layer: int) -> int:
        """Channels of a layer as `forward` returns it."""
        raise NotImplementedError

    def run(self, pixels: Tensor) -> Features:
        """Normalised pixels [B, 3, H, W] -> the chosen layers."""
        raise NotImplementedError

    def pool(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> one vector per image [B, D], as the family summarises an image."""
        raise NotImplementedError

    # What all families share.

    def resolve_layer(self, layer: int) -> int:
        """A requested layer as a number of blocks to run. Raises UserError if the model has no such layer."""
        blocks = layer if layer >= 0 else self.depth if layer == -1 else self.depth + layer + 2
        if not 0 <= blocks <= self.depth:
            raise UserError(
                f"encoder.patch_from_layers: layer {layer} does not exist; this encoder has {self.depth} blocks, "
                f"so layers 0 to {self.depth} and -1 to {-self.depth - 2}."
            )
        return blocks

    @property
    def text_tokenizer(self) -> Any | None:
        """The tokenizer of its text model, if it has one."""
        return None if self.text_encoder is None else self.text_encoder.tokenizer

    def train(self, mode: bool = True) -> VisionEncoder:
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)

    def preprocess(self, images: Tensor, input_scale: float = 1.0) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> the normalised input of the backbone.

        Args:
            input_scale: factor of the equivariance regularisation's input branch; applied first when below 1.
        """
        if input_scale < 1:
            images = F.interpolate(
                images,
                scale_factor=input_scale,
                mode=self.interpolation,
                align_corners=False,
                antialias=self.antialias_prescale,
            )
        if self.scale_factor != 1:
            images = F.interpolate(
                images,
                scale_factor=self.scale_factor,
                mode=self.interpolation,
                align_corners=False,
                antialias=self.scale_factor < 1,
            )
        return (images - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def forward(self, images: Tensor, input_scale: float = 1.0) -> Features:
        """Images [B, 3, H, W] in [0, 1] -> features; see `preprocess` for `input_scale`.

        Raises: ShapeError if the resized image does not divide into patches.
        """
        pixels = self._pixels(images, input_scale)
        with frozen_precision(pixels.device):
            features = self.run(pixels)
        return Features([level.float() for level in features.levels], features.grids)

    @torch.no_grad()
    def pooled(self, images: Tensor, input_scale: float = 1.0) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> one vector per image [B, D], float32, for analysis.

        Runs the whole backbone, whatever layers were chosen; a tokenizer has no use for it.

        Raises: ShapeError if the resized image does not divide into patches.
        """
        pixels = self._pixels(images, input_scale)
        with frozen_precision(pixels.device):
            return self.pool(pixels).float()

    def _pixels(self, images: Tensor, input_scale: float) -> Tensor:
        pixels = self.preprocess(images.float(), input_scale)
        height, width = pixels.shape[-2:]
        if height % self.pixel_multiple or width % self.pixel_multiple:
            raise ShapeError(
                f"the encoder sees {height} x {width} pixels, expected multiples of its patch size "
                f"{self.pixel_multiple}; use another image size or encoder.scale_factor."
            )
        return pixels
