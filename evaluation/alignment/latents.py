"""Latents of the clean images, as the features of diffusion models start from them.

latents_rank00_batch000.safetensors    `latents` float32 [n, C, h, w], unscaled posterior samples; `labels` int64
                                       [n]; `names` uint8 [n, longest]; `dinov2_cls_tokens` float32 [n, D] if asked
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from common import distributed
from common.errors import DataError, UserError
from common.files import write_atomically
from common.torch_file import read_torch_file
from common.value_range import uint8_to_unit
from data.class_texts import imagenet_synsets
from data.latents import write_statistics
from data.name_tensors import pack_names
from evaluation.alignment.images import class_of_name, list_clean, read_square
from evaluation.alignment.models.base import LatentModel
from evaluation.batches import fill_up, in_batches, read_ahead
from evaluation.images import ImageFile, to_tensor
from networks.encoders.base import VisionEncoder

NULL_LABEL = 1000
CLASS_TOKENS = "dinov2_cls_tokens"


@dataclass(frozen=True)
class PrefetchOptions:
    """How latents are written.

    Args:
        resolution: side of the images.
        per_file: images per file.
        with_labels: classes are read from the names; else all labels are the null class.
    """

    resolution: int
    batch_size: int
    per_file: int
    device: torch.device
    with_labels: bool = True
    workers: int = 4


def prefetch_latents(
    model: LatentModel, class_encoder: VisionEncoder | None, folder: Path, output: Path, how: PrefetchOptions
) -> int:
    """Write the latents of a folder of clean images, sorted by name; ranks, which all must call it, share the files.

    Args:
        class_encoder: gives the class tokens that REG diffuses along; None: none are written.

    Returns: number of images.
    Raises: DataError if images or their classes cannot be read, or `output` holds latents already.
    """
    images = distributed.on_rank_0(lambda: _plan(folder, output))
    names = [image.key for image in images]
    labels = labels_of(names) if how.with_labels else dict.fromkeys(names, NULL_LABEL)
    files = list(in_batches(images, how.per_file))
    rank, ranks = distributed.rank(), distributed.world_size()
    problem: UserError | None = None
    with tqdm(total=len(images), unit="image", disable=rank != 0) as bar:
        try:
            for number, group in list(enumerate(files))[rank::ranks]:
                tensors = _encode(model, class_encoder, group, how)
                tensors["labels"] = torch.tensor([labels[image.key] for image in group])
                tensors["names"] = pack_names([image.key for image in group])
                path = output / f"latents_rank{rank:02d}_batch{number // ranks:03d}.safetensors"
                write_atomically(path, lambda partial, tensors=tensors: save_file(tensors, partial))
                bar.update(len(group) * ranks)
        except UserError as error:
            problem = error
    distributed.raise_together(problem)
    return len(images)


def _plan(folder: Path, output: Path) -> list[ImageFile]:
    if any(output.glob("latents_*.safetensors")):
        raise DataError(f"{output}: holds latents already; choose an empty --output-dir or remove them.")
    return list_clean(folder)


@torch.inference_mode()
def _encode(
    model: LatentModel, class_encoder: VisionEncoder | None, images: Sequence[ImageFile], how: PrefetchOptions
) -> dict[str, Tensor]:
    latents, tokens = [], []
    for batch, pixels in _batches(images, how):
        filled = [image.key for image in fill_up(batch, how.batch_size)]
        latents.append(model.latents(pixels, filled)[: len(batch)].float().cpu())
        if class_encoder is not None:
            tokens.append(class_encoder.pooled(pixels)[: len(batch)].float().cpu())
    encoded = {"latents": torch.cat(latents)} | ({CLASS_TOKENS: torch.cat(tokens)} if tokens else {})
    return {name: values.contiguous() for name, values in encoded.items()}


def _batches(images: Sequence[ImageFile], how: PrefetchOptions) -> Iterator[tuple[list[ImageFile], Tensor]]:
    """Images and their pixels in [0, 1], filled up to the batch size."""

    def read(image: ImageFile) -> tuple[ImageFile, Tensor]:
        return image, to_tensor(read_square(image, how.resolution))

    with ThreadPoolExecutor(how.workers) as pool:
        for batch in in_batches(read_ahead(pool, read, images, 2 * how.batch_size + how.workers), how.batch_size):
            pixels = torch.stack([pixels for _, pixels in fill_up(batch, how.batch_size)])
            yield [image for image, _ in batch], uint8_to_unit(pixels.to(how.device))


def labels_of(names: Sequence[str]) -> dict[str, int]:
    """Class index of every name: that of the synset in front of its last underscore.

    Raises: DataError if names have no ImageNet-1k synset there.
    """
    synsets = {synset: index for index, synset in enumerate(imagenet_synsets())}
    unknown = [name for name in names if class_of_name(name) not in synsets]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(names)} names do not begin with an ImageNet-1k synset, such as {unknown[0]!r} "
            "(expected n01440764_...); with --no-labels every image gets the null class."
        )
    return {name: synsets[class_of_name(name)] for name in names}


def copy_statistics(source: Path | None, model: LatentModel, output: Path) -> None:
    """Write `latents_stats.pt`, by which a diffusion model normalises latents: mean and std, [1, C, 1, 1] each.

    Those of its training, where they are given; else those that the model itself states; else none.

    Raises: DataError or CheckpointError if `source` is no such file.
    """
    if source is None:
        stated = model.stated_statistics()
        if stated is None:
            return
        mean, std = stated
    else:
        content = read_torch_file(source) if source.is_file() else None
        if not isinstance(content, dict) or not {"mean", "std"} <= content.keys():
            raise DataError(f"{source}: expected a file with the tensors `mean` and `std` (latents_stats.pt).")
        mean, std = content["mean"], content["std"]
    write_statistics(output, mean, std)
