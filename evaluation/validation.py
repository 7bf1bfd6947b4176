"""Validation during training: a fixed set of images, reconstructed and scored in the same way every time.

Reading, cropping, posterior noise and scores are those of `tools/reconstruct`, so a checkpoint evaluated with the tools
on the same folder gets the same numbers. The result depends on neither the number of ranks nor the batch size, as far
as `evaluation.reconstruction` promises. The features of the Frechet distance are kept for the whole set: with Inception
16 KB for each image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

import torch
from PIL import Image
from torch import Tensor, nn

from common import distributed
from common.errors import DataError, UserError
from data.config import DataConfig
from data.decode import decode_image
from data.labels import build_labels
from data.pipeline import Batch, Sample, collate
from data.skips import BadSample, Skip
from data.sources import SampleSource, build_source
from evaluation.batches import fill_up, in_batches, read_ahead, spread
from evaluation.config import FRECHET_METRICS, ValidationConfig
from evaluation.fidelity import moments_of
from evaluation.frechet import frechet_distance
from evaluation.images import CROPS
from evaluation.quality import PairScore, as_record, score_batch, summarise
from evaluation.reconstruction import Protocol
from evaluation.reconstruction_scores import choose_extractor

READERS = 4  # threads that decode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationResult:
    """What a validation found, over all ranks.

    Args:
        values: means over images by name: `psnr` (dB), `ssim` (images in [-1, 1]), `ssim_01` (in [0, 1]) and the
            perceptual distance under its own name; none of them if no image could be read. The Frechet distance of the
            set under its own name, if there are two images. `images` and `skipped` count the images.
        inputs, outputs: uint8 [n, 3, R, R], the images for a grid.
    """

    values: dict[str, float]
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class _Picture:
    number: int
    sample: Sample


@dataclass(frozen=True)
class _Scored:
    number: int
    quality: PairScore
    pair: Tensor | None  # uint8 [2, 3, R, R], input and output, of the images that are shown
    features: Tensor | None  # [2, D], of input and output, for the Frechet distance


class Validation:
    """A fixed set of images with its metrics.

    Args:
        config: the section `validation`.
        data: the set as `config.as_data` describes it.
        vgg16_path: LPIPS's trunk; None: looked for in the torch hub cache.
        shown: images in the grid.
        device: where scores are computed.

    In a distributed run every rank must build it.
    Raises: UserError if the set cannot be opened, or lacks what the chosen metrics need.
    """

    def __init__(
        self, config: ValidationConfig, data: DataConfig, vgg16_path: str | None, shown: int, device: torch.device
    ):
        self.config, self.device = config, device
        self.protocol = Protocol(data.resolution, config.crop, config.latent, config.seed)
        self.source, self.labels = _open(data), build_labels(data)
        self.indices = spread(len(self.source), config.num_images)
        self._shown = frozenset(spread(len(self.indices), shown))
        self.distance_name, self.distance = _perceptual_distance(config, vgg16_path)
        if self.distance is not None:
            self.distance.to(device)
        self.extractor = choose_extractor(config.frechet, config.inception_path)
        self.frechet_name = None
        if self.extractor is not None:
            self.frechet_name = FRECHET_METRICS[self.extractor.to(device).name]
        self._check_best_metric()
        self._input_features: dict[int, Tensor] = {}
        self._reading = threading.Lock()
        self._known_bad: set[str] = set()

    @property
    def every_ticks(self) -> int:
        """Ticks between validations."""
        return self.config.every_ticks

    @property
    def best_metric(self) -> str | None:
        """What the best checkpoint is chosen by."""
        return self.config.best_metric

    def _check_best_metric(self) -> None:
        metric, c = self.config.best_metric, self.config
        if metric in ("lpips", "efficientnet_perceptual") and metric != self.distance_name:
            raise UserError(
                f"validation.best_metric: found {metric}, but the perceptual distance here is {self.distance_name} "
                f"(validation.perceptual is {c.perceptual}); name that one, psnr or ssim."
            )
        if metric in FRECHET_METRICS.values() and metric != self.frechet_name:
            raise UserError(
                f"validation.best_metric: found {metric}, but the Frechet distance here is {self.frechet_name} "
                f"(validation.frechet is {c.frechet}); name that one, psnr or ssim."
            )

    def fingerprint(self) -> str:
        """SHA-256 over the images' keys, the protocol and the metrics: equal ones give numbers that compare."""
        keys = [self.source.key(index) for index in self.indices]
        content = json.dumps([keys, asdict(self.protocol), self.distance_name, self.frechet_name])
        return hashlib.sha256(content.encode()).hexdigest()

    def run(self, reconstruct: Callable[[Batch, Protocol], Tensor]) -> ValidationResult:
        """Reconstruct and score the set; every rank must call it.

        An image that cannot be read is left out and counted; the log names it once.

        Args:
            reconstruct: from a batch of uint8 images and their keys to reconstructions, uint8 [B, 3, R, R].
        """
        scored: list[_Scored] = []
        skips: list[Skip] = []
        with ThreadPoolExecutor(READERS) as readers:
            for pictures in in_batches(self._readable(readers, skips), self.config.batch_size_per_gpu):
                scored += self._score(pictures, reconstruct)
        shares = distributed.all_gather_objects((scored, len(skips)))
        everything = sorted((image for images, _ in shares for image in images), key=lambda image: image.number)
        return self._summarise(everything, sum(skipped for _, skipped in shares))

    def _readable(self, readers: ThreadPoolExecutor, skips: list[Skip]) -> Iterator[_Picture]:
        """This rank's images in order; those that cannot be read join `skips`."""
        share = range(distributed.rank(), len(self.indices), distributed.world_size())
        for picture in read_ahead(readers, self._read, share, ahead=2 * self.config.batch_size_per_gpu + READERS):
            if isinstance(picture, _Picture):
                yield picture
                continue
            skips.append(picture)
            if picture.key not in self._known_bad:
                log.warning("Left out of the validation: %s", picture)
                self._known_bad.add(picture.key)

    def _read(self, number: int) -> _Picture | Skip:
        index = self.indices[number]
        key = self.source.key(index)
        try:
            with self._reading:  # sources are made for one reader per process
                raw = self.source.read(index)
            if self.labels is not None:
                self.labels.check(raw.label)
            image = decode_image(raw.image)
        except BadSample as bad:
            return Skip(bad.kind, self.source.shard(index), key, bad.detail)
        if self.config.source != "webdataset":
            key = PurePosixPath(key).with_suffix("").as_posix()  # as the tools name an image
        pixels = CROPS[self.config.crop](Image.fromarray(image.pixels), self.protocol.resolution)
        return _Picture(number, Sample(pixels, key, raw.label, image.conversions))

    def _score(self, pictures: list[_Picture], reconstruct: Callable[[Batch, Protocol], Tensor]) -> list[_Scored]:
        filled = fill_up(pictures, self.config.batch_size_per_gpu)
        batch = collate([picture.sample for picture in filled], self.labels)
        outputs = reconstruct(batch, self.protocol).to(self.device)
        # Whichever perceptual distance is used takes the place that the record has for LPIPS.
        qualities = score_batch(batch.images.to(self.device), outputs, batch.keys, self.distance)
        pairs = torch.stack([batch.images, outputs.cpu()], dim=1)  # [B, 2, 3, R, R]
        features = self._features(pictures, batch.images, outputs)
        return [
            _Scored(picture.number, quality, pair.clone() if picture.number in self._shown else None, row)
            for picture, quality, pair, row in zip(pictures, qualities, pairs, features)
        ]

    def _features(self, pictures: list[_Picture], inputs: Tensor, outputs: Tensor) -> list[Tensor | None]:
        """[2, D] for each picture; those of the inputs, which stay the same, are computed once."""
        if self.extractor is None:
            return [None] * len(pictures)
        known = self._input_features
        if any(picture.number not in known for picture in pictures):
            rows = self.extractor(inputs.to(self.device)).pool.cpu()
            known |= {picture.number: row.clone() for picture, row in zip(pictures, rows)}
        rows = self.extractor(outputs).pool.cpu()
        return [torch.stack([known[picture.number], row]) for picture, row in zip(pictures, rows)]

    def _summarise(self, scored: list[_Scored], skipped: int) -> ValidationResult:
        values: dict[str, float] = {}
        if scored:
            means = as_record(summarise([image.quality for image in scored]))
            values = {name: means[name] for name in ("psnr", "ssim", "ssim_01")}
            if self.distance_name is not None:
                values[self.distance_name] = means["lpips"]
        if self.frechet_name is not None and len(scored) > 1:
            values[self.frechet_name] = distributed.on_rank_0(lambda: _frechet_distance(scored))
        values |= {"images": len(scored), "skipped": skipped}
        side = self.protocol.resolution
        shown = [image.pair for image in scored if image.pair is not None]
        pairs = torch.stack(shown) if shown else torch.empty(0, 2, 3, side, side, dtype=torch.uint8)
        return ValidationResult(values, pairs[:, 0], pairs[:, 1])


def _frechet_distance(scored: list[_Scored]) -> float:
    """Between inputs and outputs, rounded to 6 digits; features come in the order of the images, whatever the ranks."""
    inputs, outputs = torch.stack([image.features for image in scored], dim=1)  # [N, D] each
    return round(frechet_distance(moments_of(inputs), moments_of(outputs)), 6)


def _open(config: DataConfig) -> SampleSource:
    try:
        return build_source(config, seed=0)
    except DataError as error:  # the keys that it names are those of the section data
        raise DataError(re.sub(r"\bdata\.(?=path|source|filter_keys_path)", "validation.", str(error))) from error


def _perceptual_distance(config: ValidationConfig, vgg16_path: str | None) -> tuple[str | None, nn.Module | None]:
    """Name and network of the perceptual distance. Raises UserError if LPIPS is asked for and its trunk is not here."""
    from losses.efficientnet_perceptual import EfficientNetDistance
    from losses.lpips import find_trunk, load_lpips

    name = config.perceptual
    if name == "auto":
        try:
            find_trunk(vgg16_path)
            name = "lpips"
        except UserError:
            name = "efficientnet_perceptual"
    if name == "none":
        return None, None
    return name, load_lpips(vgg16_path) if name == "lpips" else EfficientNetDistance()
