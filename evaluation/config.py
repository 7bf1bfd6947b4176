"""Configuration of the validation during training. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from common.config import StrictModel
from data.config import DataConfig

FRECHET_METRICS = {"inception": "rfid", "efficientnet_lite0": "efficientnet_lite0_frechet_distance"}
"""What the Frechet distance on the features of an extractor is called."""


class ValidationConfig(StrictModel):
    """A fixed set of images that the EMA reconstructs every few ticks, as `tools/reconstruct` would."""

    source: Literal["webdataset", "folder", "zip"] = Field("folder", description="Kind of data set at `path`.")
    path: str = Field(description="Image folder, .zip file, or folder of *.tar shards; all searched recursively.")
    filter_keys_path: str | None = Field(None, description="List of sample keys to keep, as in the section data.")
    num_images: PositiveInt = Field(1000, description="Use so many images, evenly spread over the set.")
    every_ticks: PositiveInt = Field(50, description="Ticks between validations; the last tick always has one.")
    batch_size_per_gpu: PositiveInt = Field(
        16, description="Images per batch on each rank; does not change the result."
    )
    crop: Literal["torchvision", "adm"] = Field("torchvision", description="Resize and crop rule.")
    latent: Literal["sample", "mode"] = Field("sample", description="Sample or mean of the posterior.")
    seed: NonNegativeInt = Field(0, description="Key of the posterior noise, with each image's own key.")
    perceptual: Literal["auto", "lpips", "efficientnet_perceptual", "none"] = Field(
        "auto", description="Perceptual distance. auto: LPIPS where its VGG16 is found, else efficientnet_perceptual."
    )
    frechet: Literal["auto", "inception", "efficientnet_lite0", "none"] = Field(
        "auto",
        description="Features of the Frechet distance. auto: Inception (rfid) where its weights are found, else "
        "EfficientNet-Lite0 (efficientnet_lite0_frechet_distance).",
    )
    inception_path: str | None = Field(
        None, description="Inception weights, weights-inception-2015-12-05-6726825d.pth; null: the torch hub cache's."
    )
    best_metric: (
        Literal["psnr", "ssim", "lpips", "efficientnet_perceptual", "rfid", "efficientnet_lite0_frechet_distance"]
        | None
    ) = Field("psnr", description="What the best checkpoint, which stays, is chosen by; null: none is.")

    def as_data(self, training: DataConfig, with_labels: bool) -> DataConfig:
        """The set in the terms of the training data, with whose resolution, kind of label and caches it is read."""
        return training.model_copy(
            update={
                "source": self.source,
                "path": self.path,
                "filter_keys_path": self.filter_keys_path,
                "label_type": training.label_type if with_labels else "none",
                "max_size": None,
                "xflip": False,
            }
        )
