"""Prefetched latents as the data of a training: latents -> order -> draws -> normalised latents -> micro-batches.

What is drawn for a sample (its mirror image, its place in the posterior, the noise that it is trained with) depends on
the seed and on the position alone, so batches depend neither on ranks, workers and accumulation nor on where a run was
interrupted.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import DataError
from common.random import torch_generator
from data.config import LatentDataConfig, LightningDiTDataConfig, REGDataConfig
from data.latents import LatentDataset, LatentNormalisation, flip_coin
from data.order import SampleOrder
from data.prefetch_index import read_index
from data.prefetched_stream import PrefetchedStream
from data.reg_latents import open_reg, sample_moments
from data.skips import Skip
from data.stream import Share
from data.target_tokens import TargetTokens

CHECKED_ITEMS = 256  # latents whose size is looked at before a run
SOUND_RMS = (0.25, 4.0)


@dataclass(frozen=True)
class LatentBatch:
    """One micro-batch.

    Args:
        z: normalised latents, float32 [b, C, h, w].
        labels: class indices, int64 [b].
        positions: the positions that the samples stand at.
        images: the crops that the latents are of, uint8 [b, 3, R, R], where target features are made of them.
        tokens: of each target encoder, float32 [b, 1 + N, D_i], where they were computed beforehand.
        drawn: what was drawn for the training, by name, [b, ...] each.
        skips, conversions: always empty, for a latent that cannot be read ends the run.
    """

    z: Tensor
    labels: Tensor
    positions: range
    images: Tensor | None = None
    tokens: list[Tensor] | None = None
    drawn: dict[str, Tensor] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)
    conversions: dict[str, int] = field(default_factory=dict)

    def pin_memory(self) -> LatentBatch:
        """The same batch in page-locked memory (called by the loader)."""
        return replace(
            self,
            z=self.z.pin_memory(),
            labels=self.labels.pin_memory(),
            images=None if self.images is None else self.images.pin_memory(),
            tokens=None if self.tokens is None else [tensor.pin_memory() for tensor in self.tokens],
            drawn={name: tensor.pin_memory() for name, tensor in self.drawn.items()},
        )


class SampleDraws(Protocol):
    """What a training draws for a sample; done by the loader processes, for it takes time."""

    def __call__(self, label: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Tensors by name, from the sample's own generator."""
        ...


@dataclass(frozen=True)
class LatentExample:
    """One sample of a batch: [C, h, w], class index, and [3, R, R] or [1 + N, D_i] for each target encoder."""

    z: Tensor
    label: int
    image: Tensor | None = None
    tokens: list[Tensor] | None = None


class TrainingLatents(ABC):
    """A folder of latents as a training draws from it.

    Attributes:
        path: the folder.
        latent_shape: (C, h, w).
        normalisation: between the tokenizer's latents and those of the examples.
    """

    path: Path
    latent_shape: tuple[int, int, int]
    normalisation: LatentNormalisation

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def labels(self) -> Tensor:
        """All class indices, int64 [N]."""

    @abstractmethod
    def example(self, index: int, seed: int, position: int) -> LatentExample:
        """Item `index` as it is drawn for a position of the endless order."""

    def fingerprint(self) -> str:
        """SHA-256 over labels, statistics and shape, and over the files where the prefetch has left their hashes."""
        digest = hashlib.sha256(json.dumps([len(self), self.latent_shape, self.normalisation.multiplier]).encode())
        for tensor in (self.labels(), self.normalisation.mean, self.normalisation.std):
            digest.update(tensor.contiguous().numpy().tobytes())
        index = read_index(self.path)
        if index is not None:
            digest.update(json.dumps(index.get("files"), sort_keys=True).encode())
        return digest.hexdigest()

    def require_fit(self, latent_shape: Sequence[int], num_classes: int) -> None:
        """Refuse latents that a network cannot be trained on.

        Raises: DataError if their shape is not the network's, a label is no class of it, or their size says that they
            are not normalised.
        """
        if list(self.latent_shape) != list(latent_shape):
            raise DataError(
                f"{self.path}: latents have the shape {list(self.latent_shape)}, but network.in_channels and network."
                f"input_size say {list(latent_shape)}; set these to the latents', or prefetch with another tokenizer."
            )
        labels = self.labels()
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise DataError(
                f"{self.path}: found the label {int(wrong[0])} ({len(wrong):,} of {len(labels):,} are no class), but "
                f"network.num_classes is {num_classes}: expected labels from 0 to {num_classes - 1}."
            )
        self._require_normalised()

    def _require_normalised(self) -> None:
        """Look at some latents, evenly spread."""
        step = max(len(self) // CHECKED_ITEMS, 1)
        checked = torch.stack([self.example(index, 0, 0).z for index in range(0, len(self), step)])
        rms = checked.square().mean().sqrt().item()
        if not SOUND_RMS[0] <= rms <= SOUND_RMS[1]:
            raise DataError(
                f"{self.path}: the latents that would be trained on have the root mean square {rms:.3g}, expected about"
                " 1: they are not normalised, or latents_stats.pt is of other latents. Set data.latent_norm: true, or "
                "write the statistics of these latents with the prefetch."
            )


class LightningDiTLatents(TrainingLatents):
    """Latents of images and of their mirror images.

    Raises: DataError that names the file which is missing, damaged or does not fit.
    """

    def __init__(self, config: LightningDiTDataConfig):
        self.path = Path(config.path)
        self._data = LatentDataset(
            self.path, latent_norm=config.latent_norm, latent_multiplier=config.latent_multiplier
        )
        self.latent_shape, self.normalisation = self._data.latent_shape, self._data.normalisation

    def __len__(self) -> int:
        return len(self._data)

    def labels(self) -> Tensor:
        return torch.cat(list(self._data.rows.blocks("labels", 65536)))

    def example(self, index: int, seed: int, position: int) -> LatentExample:
        item = self._data.item(index, flip_coin(seed, position))
        return LatentExample(item.z, item.label)


class REGLatents(TrainingLatents):
    """Moments of latents with their images, or tokens of these; the normalised latent is drawn anew each time.

    Attributes:
        tokens: of the target encoders, where they were computed beforehand.

    Raises: DataError that names the file which is missing, damaged or does not fit.
    """

    def __init__(self, config: REGDataConfig):
        self.path = Path(config.path)
        self._source = open_reg(self.path, config.image_folder, config.vae_folder)
        channels, *sides = self._source.moments_shape
        self.latent_shape = (channels // 2, *sides)
        self.normalisation = self._source.normalisation()
        self.tokens = None if config.features_path is None else TargetTokens(config.features_path, self._source)

    def __len__(self) -> int:
        return len(self._source)

    def labels(self) -> Tensor:
        return self._source.labels()

    def example(self, index: int, seed: int, position: int) -> LatentExample:
        noise = torch.randn(self.latent_shape, generator=torch_generator(seed, "latent of the moments", position))
        z = self.normalisation.normalise(sample_moments(self._source.moments(index), noise))
        if self.tokens is not None:
            return LatentExample(z, self._source.label(index), tokens=self.tokens.item(index))
        return LatentExample(z, self._source.label(index), self._source.image(index))


class _MicroBatches(Dataset):
    """Micro-batches by their first position."""

    def __init__(self, latents: TrainingLatents, order: SampleOrder, size: int, draws: SampleDraws):
        self._latents, self._order, self._size, self._draws = latents, order, size, draws

    def __getitem__(self, start: int) -> LatentBatch | DataError:
        """The micro-batch that starts at a position; an error is returned, for the main process to raise."""
        positions = range(start, start + self._size)
        seed = self._order.seed
        try:
            examples = [self._latents.example(self._order.sample_at(p), seed, p) for p in positions]
        except DataError as error:
            return error
        first = examples[0]
        drawn = [
            self._draws(example.label, torch_generator(seed, "diffusion training", position))
            for position, example in zip(positions, examples)
        ]
        return LatentBatch(
            torch.stack([example.z for example in examples]),
            torch.tensor([example.label for example in examples]),
            positions,
            None if first.image is None else torch.stack([example.image for example in examples]),
            None if first.tokens is None else [torch.stack(rows) for rows in zip(*(e.tokens for e in examples))],
            {name: torch.stack([row[name] for row in drawn]) for name in drawn[0]},
        )


class LatentStream(PrefetchedStream):
    """The latents of a run, as one rank sees them.

    Args:
        latents: checked to fit the network.
        config: how they are loaded.
        seed: the run's seed; with the step, all that the batches depend on.
        share: what this rank takes of every step.
        draws: what is drawn for every sample besides the latent itself.

    In a distributed run every rank must build it.
    Raises: DataError if the ranks found different latents.
    """

    def __init__(self, latents: TrainingLatents, config: LatentDataConfig, seed: int, share: Share, draws: SampleDraws):
        self.latents = latents
        dataset = _MicroBatches(latents, SampleOrder([len(latents)], 1, seed), share.micro_batch, draws)
        super().__init__(dataset, config, share, latents.fingerprint(), "latents")

    def describe(self) -> str:
        """What was found, for the log of a run's start."""
        count, batch = len(self.latents), self.share.global_batch
        return (
            f"Data: {count:,} latents of the shape {list(self.latents.latent_shape)} in {self.latents.path}; "
            f"{-(-count // batch):,} steps of {batch} per epoch"
        )
