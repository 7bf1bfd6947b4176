"""Pipelines around a tokenizer, each beside the work alone that it is there for: images per second.

input        the training's loader, beside plain decoding and resizing of the same files in as many processes
prefetch     a folder of what a tokenizer makes of images, beside encoding as many images that are there already
reconstruct  PNG files of images and their reconstructions, beside the networks on images that are there already
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from common.random import numpy_generator, torch_generator
from data.config import DataConfig
from data.pipeline import TrainingData
from data.skips import BadSample
from data.write_shards import NewSample, encode_image, write_shards
from evaluation.cost import seconds_of
from evaluation.images import CROPS, open_images, png_name, read_input, to_tensor, write_png
from evaluation.prefetch.format import PrefetchFormat
from evaluation.prefetch.run import CROP, PrefetchOptions, prefetch
from evaluation.reconstruction import INPUT_FOLDER, OUTPUT_FOLDER, Protocol, reconstruct_batch, reconstruct_folder

if TYPE_CHECKING:
    from configs.tokenizer import TokenizerExperiment

Pipeline = Callable[[], float]

LOADED_IMAGES = 512  # at least so many are timed on their way through the loader
NETWORK_SECONDS = 5.0  # at least so long the networks of a pipeline are at work
FEWEST_BATCHES = 4  # and on so many batches
MADE_UP_IMAGES = 128
MADE_UP_SIZE = (375, 500)  # height and width, near the mean of ImageNet


def input_pipelines(config: DataConfig, batch_size: int, scratch: Path) -> dict[str, Pipeline]:
    """`input`: the training's loader as configured, on its data, or on made-up photographs where that is not here.

    `pil`: what there is to do at the least, decoding the same files and resizing them, by as many processes.
    """
    if not Path(config.path).exists():
        shards = _made_up_shards(scratch / "photographs", MADE_UP_IMAGES)
        plain = {"source": "webdataset", "path": str(shards), "label_type": "none", "filter_keys_path": None}
        config = config.model_copy(update={**plain, "max_size": None, "xflip": False})
    data = TrainingData(config, 0, batch_size, batch_size)
    processes = max(config.workers, 1)
    batches = processes * max(1, -(-LOADED_IMAGES // (batch_size * processes)))
    positions = range(processes * batch_size, (processes + batches) * batch_size)
    contents = list(_contents(data, positions))

    def load() -> float:
        loaded = data.micro_batches()
        for _ in range(processes):  # from here on all of them are at work
            next(loaded)
        start = time.perf_counter()
        for _ in range(batches):
            next(loaded)
        seconds = time.perf_counter() - start
        loaded.close()
        return len(positions) / seconds

    def decode() -> float:
        start = time.perf_counter()
        _in_processes(contents, config.resolution, config.workers)
        return len(contents) / (time.perf_counter() - start)

    return {"input": load, "pil": decode}


def _contents(data: TrainingData, positions: Sequence[int]) -> Iterator[bytes]:
    """Files of the samples at some positions; those that cannot be read are left out."""
    for position in positions:
        with contextlib.suppress(BadSample):
            yield data.source.read(data.order.sample_at(position)).image


def _in_processes(contents: Sequence[bytes], side: int, workers: int) -> None:
    """Decode and resize images by some processes; 0: by this one."""
    if workers == 0:
        _decode(contents, side)
        return
    fork = multiprocessing.get_context("fork")  # as the loader's processes; the files need not be sent
    processes = [fork.Process(target=_decode, args=(contents[k::workers], side)) for k in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _decode(contents: Sequence[bytes], side: int) -> None:
    for content in contents:
        np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((side, side), Image.Resampling.LANCZOS))


def prefetch_pipelines(
    model: nn.Module, kind: PrefetchFormat, config: TokenizerExperiment, device: torch.device, scratch: Path
) -> dict[str, Pipeline]:
    """`prefetch`: made-up photographs in shards -> a folder, all told. `bare_prefetch`: what it asks of the tokenizer.
    `prefetch_files`: what one core takes to decode and crop the photographs.

    Args:
        kind: what is stored of an image.
    """
    size, side = config.training.batch_size, config.data.resolution
    crop = kind.crop_side(side)
    images, keys = _made_up_images(size, crop, device)

    @torch.inference_mode()
    def encode_batch() -> None:
        kind.encode(model, images, keys)

    batches = _enough_batches(encode_batch, device)
    count = batches * size
    shards = _made_up_shards(scratch / "to-prefetch", count)
    options = PrefetchOptions(side, batch_size=size, rows_per_file=count)
    folders = (tempfile.mkdtemp(dir=scratch) for _ in itertools.count())

    def run() -> None:
        prefetch(model, shards, next(folders), kind, options, device)

    def encode() -> None:
        for _ in range(batches):
            encode_batch()

    def read() -> None:
        for photograph in open_images(shards).images:
            CROPS[CROP](read_input(photograph), crop)

    works = {"prefetch": run, "bare_prefetch": encode, "prefetch_files": read}
    return {name: _images_per_second(work, count, device) for name, work in works.items()}


def reconstruct_pipelines(
    model: nn.Module, config: TokenizerExperiment, device: torch.device, scratch: Path
) -> dict[str, Pipeline]:
    """`reconstruct`: made-up photographs in shards -> PNG files of inputs and reconstructions, all told.
    `bare_reconstruct`: what it asks of the tokenizer. `reconstruct_files`: what one core takes to decode and crop the
    photographs, and to write two PNG files of each.
    """
    size, side = config.training.batch_size, config.data.resolution
    protocol = Protocol(side)
    images, keys = _made_up_images(size, side, device)
    batches = _enough_batches(lambda: reconstruct_batch(model, images, keys, protocol), device)
    count = batches * size
    shards = _made_up_shards(scratch / "to-reconstruct", count)
    folders = (Path(tempfile.mkdtemp(dir=scratch)) for _ in itertools.count())

    def run() -> None:
        reconstruct_folder(model, shards, next(folders), protocol, batch_size=size, device=device)

    def compute() -> None:
        for _ in range(batches):
            reconstruct_batch(model, images, keys, protocol)

    def convert() -> None:
        folder = next(folders)
        for photograph in open_images(shards).images:
            pixels = to_tensor(CROPS[protocol.crop](read_input(photograph), side))
            for name in (INPUT_FOLDER, OUTPUT_FOLDER):
                write_png(folder / name / png_name(photograph), pixels)

    works = {"reconstruct": run, "bare_reconstruct": compute, "reconstruct_files": convert}
    return {name: _images_per_second(work, count, device) for name, work in works.items()}


def _enough_batches(work: Callable[[], object], device: torch.device) -> int:
    """How many batches it takes for what a pipeline does once, to start and to end, not to matter.

    Args:
        work: what the networks do with one batch.
    """
    work()
    return max(FEWEST_BATCHES, math.ceil(NETWORK_SECONDS / seconds_of(work, device)))


def _images_per_second(work: Callable[[], object], count: int, device: torch.device) -> Pipeline:
    return lambda: count / seconds_of(work, device)


def _made_up_images(count: int, side: int, device: torch.device) -> tuple[Tensor, list[str]]:
    """uint8 [count, 3, side, side], and their keys."""
    generator = torch_generator(0, "benchmark batch")
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return images.to(device), [str(number) for number in range(count)]


def _made_up_shards(folder: Path, count: int) -> Path:
    """Shards of JPEG files with about as much in them as photographs have: colours that change slowly, and grain."""

    def photographs() -> Iterator[NewSample]:
        for number in range(count):
            rng = numpy_generator(0, "benchmark photograph", number)
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize(MADE_UP_SIZE[::-1], Image.Resampling.BICUBIC), dtype=np.float32)
            grain = rng.normal(0, 4, smooth.shape)
            image, extension = encode_image(np.clip(smooth + grain, 0, 255).astype(np.uint8), "jpeg")
            yield NewSample(f"{number:06d}", image, extension, label=0)

    write_shards(photographs(), folder)
    return folder
