"""Configuration of the training data. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from common.config import StrictModel


class DataConfig(StrictModel):
    """Where images come from, in which order, and how they are prepared."""

    source: Literal["webdataset", "folder", "zip"] = Field("webdataset", description="Kind of data set at `path`.")
    path: str = Field(
        description="Folder that holds *.tar shards (searched recursively), URL or pattern of shards, image folder, "
        "or .zip file."
    )
    resolution: PositiveInt = Field(256, description="Side of the training images in pixels.")
    label_type: Literal["none", "cls2text", "cls2id", "text"] = Field(
        "none", description="Labels of the batches: none, class texts, class indices, captions."
    )
    cls_to_text_path: str | None = Field(None, description="JSON from class index to text (label_type cls2text).")
    filter_keys_path: str | None = Field(
        None, description="List of sample keys to keep: .txt, .json, or a .pkl of a list of strings."
    )
    data_augmentation: bool = Field(True, description="Random crop and horizontal flip; else a centre crop.")
    crop: Literal["square", "adm"] = Field(
        "square",
        description="square: a random half to all of the shorter side, or the largest square. adm: those of ADM, a "
        "random 0.8 to all of it, or its centre crop.",
    )
    color_augmentation: bool = Field(
        False, description="Random channel permutation, inversion, gain and offset (small data sets)."
    )
    one_epoch: bool = Field(False, description="End the run when every sample has been seen once.")
    shuffle_window_shards: PositiveInt = Field(16, description="Samples are permuted within windows of so many shards.")
    workers: NonNegativeInt = Field(3, description="Loader processes per rank; 0: the training process itself.")
    prefetch_batches: PositiveInt = Field(4, description="Micro-batches that each worker prepares ahead.")
    max_skip_fraction: float = Field(
        0.01, ge=0, le=1, description="Share of unreadable samples above which the run stops."
    )
    max_size: PositiveInt | None = Field(None, description="Use a random subset of so many images (folder, zip).")
    xflip: bool = Field(False, description="Also list every image mirrored (folder, zip).")
    index_dir: str | None = Field(
        None, description="Where shard indices are cached; null: `.shard_index` beside the shards, or `cache_dir`."
    )
    cache_dir: str | None = Field(
        None, description="Where remote shards are kept, on a disk of each machine; null: the user's cache folder."
    )
    cache_max_gb: PositiveFloat = Field(
        200, description="Size of that cache per machine; the least recently used shards make room."
    )
    download_attempts: PositiveInt = Field(6, description="Tries before a remote shard counts as missing.")
    download_timeout_s: PositiveFloat = Field(30, description="Seconds of silence after which a try has failed.")

    def unused_option(self) -> str | None:
        """Name of an option that this kind of source does not have, although it is set."""
        if self.source != "webdataset":
            return None
        return "max_size" if self.max_size is not None else "xflip" if self.xflip else None


class PrefetchedDataConfig(StrictModel):
    """What was computed beforehand. Every epoch takes all of it in a new order."""

    path: str = Field(description="Folder that a prefetch wrote.")
    workers: NonNegativeInt = Field(3, description="Loader processes per rank; 0: the training process itself.")
    prefetch_batches: PositiveInt = Field(4, description="Micro-batches that each worker prepares ahead.")


class LatentDataConfig(PrefetchedDataConfig):
    """Prefetched latents with their labels."""

    path: str = Field(description="Folder of prefetched latents, with their statistics.")


class LightningDiTDataConfig(LatentDataConfig):
    """Latents of images and of their mirror images, of which a coin takes one each time."""

    latent_norm: bool = Field(True, description="Bring every channel to mean 0 and deviation 1 by the statistics.")
    latent_multiplier: PositiveFloat = Field(1.0, description="Applied to every latent after that.")


class REGDataConfig(LatentDataConfig):
    """Images with the moments of their latents, from which a latent is drawn each time."""

    image_folder: str = Field("images", description="Sub-folder of the PNG files; of no meaning for safetensors.")
    vae_folder: str = Field("vae_latents", description="Sub-folder of the .npy files; of no meaning for safetensors.")
    features_path: str | None = Field(
        None, description="Folder of the target encoders' tokens; null: they are computed from the images."
    )


class GPTDataConfig(DataConfig):
    """Tokens of images with their classes: computed beforehand, or anew from images by a frozen tokenizer.

    What concerns images has no meaning for tokens that were computed beforehand.
    """

    source: Literal["tokens", "images"] = Field(
        "tokens", description="What is at `path`: tokens that a prefetch wrote, or shards of images."
    )
    path: str = Field(description="Folder of tokens; or folder that holds *.tar shards, URL or pattern of shards.")
    label_type: Literal["cls2id"] = Field("cls2id", description="Class indices.")

    def of_images(self) -> DataConfig:
        """How the images are read."""
        assert self.source == "images"
        return DataConfig(**{**self.model_dump(), "source": "webdataset"})
