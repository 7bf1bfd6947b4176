"""Training data: source -> order -> decode -> augment -> micro-batches.

What a batch holds depends on the configuration, the seed and the step alone: not on the number of ranks, workers or
accumulation steps, and not on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from common.distributed import all_gather_objects
from common.errors import DataError
from common.random import keyed_seed, python_generator
from data.augment import training_transform
from data.config import DataConfig
from data.decode import decode_image
from data.labels import Captions, ClassLabels, build_labels
from data.order import SampleOrder
from data.skips import BadSample, Skip, SkipCounter, count_by_kind_and_shard
from data.sources import SampleSource, build_source
from data.stream import Share, load_micro_batches

SUBSTITUTE_ATTEMPTS = 16


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Args:
        images: [b, 3, R, R] uint8.
        labels: [b] int64 class indices with `label_type: cls2id` or `cls2text`, else None.
        texts: class texts with `label_type: cls2text`, captions with `text`, else None.
        keys: sample keys.
        positions: the positions that the samples stand at; empty outside of training.
        skips: bad samples whose places were taken by substitutes, one for each such place.
        conversions: kind -> number of images that were converted to RGB.
    """

    images: Tensor
    labels: Tensor | None
    texts: list[str] | None
    keys: list[str]
    positions: range = range(0)
    skips: list[Skip] = field(default_factory=list)
    conversions: dict[str, int] = field(default_factory=dict)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by the loader)."""
        labels = None if self.labels is None else self.labels.pin_memory()
        return replace(self, images=self.images.pin_memory(), labels=labels)


@dataclass(frozen=True)
class Sample:
    """An image that is ready for a batch: [R, R, 3] uint8, with its key, label and what was converted."""

    pixels: np.ndarray
    key: str
    label: int | str | None
    conversions: tuple[str, ...]


def collate(
    samples: Sequence[Sample],
    labels: ClassLabels | Captions | None,
    positions: range = range(0),
    skips: Sequence[Skip] = (),
) -> Batch:
    """A batch of samples, with the labels that `build_labels` gave."""
    # [b, R, R, 3] -> [b, 3, R, R]
    images = np.ascontiguousarray(np.stack([sample.pixels for sample in samples]).transpose(0, 3, 1, 2))
    indices = texts = None
    if isinstance(labels, Captions):
        texts = [str(sample.label) for sample in samples]
    elif labels is not None:
        classes = [int(sample.label) for sample in samples]
        indices = torch.tensor(classes, dtype=torch.int64)
        texts = [labels.text(number) for number in classes] if labels.with_texts else None
    keys = [sample.key for sample in samples]
    conversions = Counter(kind for sample in samples for kind in sample.conversions)
    return Batch(torch.from_numpy(images), indices, texts, keys, positions, list(skips), dict(conversions))


class MicroBatches(Dataset):
    """Micro-batches by their first position. Runs in the loader processes: PIL and NumPy only."""

    def __init__(
        self,
        source: SampleSource,
        order: SampleOrder,
        labels: ClassLabels | Captions | None,
        config: DataConfig,
        seed: int,
        size: int,
    ):
        self._source = source
        self._order = order
        self._labels = labels
        self._seed = seed
        self._size = size
        self._announced: list[int] = []
        self._transform = training_transform(
            config.resolution, config.data_augmentation, config.color_augmentation, config.crop
        )

    def __getitem__(self, start: int) -> Batch | DataError:
        """The micro-batch that starts at a position; an error is returned, for the main process to raise."""
        positions = range(start, start + self._size)
        self._announce(start)
        skips: list[Skip] = []
        try:
            samples = [self._load_or_substitute(position, skips) for position in positions]
        except DataError as error:
            return error
        return collate(samples, self._labels, positions, skips)

    def _announce(self, position: int) -> None:
        """Let the source fetch the shards of this window of the order and the next.

        In loader processes only: the training process is forked, and a thread would not survive that.
        """
        if get_worker_info() is None:
            return
        shards = self._order.shards_ahead(position)
        if shards != self._announced:
            self._announced = shards
            self._source.will_need(shards)

    def _load_or_substitute(self, position: int, skips: list[Skip]) -> Sample:
        """The sample of a position. If it is bad, that is one skip, whatever becomes of its substitutes: those have
        positions of their own, where they count."""
        index = self._order.sample_at(position)
        tried: list[Skip] = []
        for attempt in range(SUBSTITUTE_ATTEMPTS):
            try:
                sample = self._load(index, position)
            except BadSample as bad:
                tried.append(Skip(bad.kind, self._source.shard(index), self._source.key(index), bad.detail))
            else:
                skips += tried[:1]
                return sample
            index = keyed_seed(self._seed, "substitute", position, attempt) % len(self._source)
        shown = "; ".join(str(skip) for skip in tried[-3:])
        raise DataError(
            f"Position {position}: none of {SUBSTITUTE_ATTEMPTS} samples in a row could be used. The last: {shown}. "
            "Most of the data set seems damaged; check data.path."
        )

    def _load(self, index: int, position: int) -> Sample:
        raw = self._source.read(index)
        if self._labels is not None:
            self._labels.check(raw.label)
        image = decode_image(raw.image)
        pixels = image.pixels[:, ::-1] if raw.mirrored else image.pixels
        pixels = self._transform(pixels, python_generator(self._seed, "augment", position))
        return Sample(pixels, raw.key, raw.label, image.conversions)


class TrainingData:
    """The data of a run, as one rank sees it.

    Args:
        config: the `data` section.
        seed: the run's seed; with the step, all that the batches depend on.
        global_batch, micro_batch, rank, world_size, accumulate, pin_memory: what this rank takes of every step, as
            `data.stream.Share` explains.

    In a distributed run every rank must build it (the index of shards is shared).
    Raises: DataError if there is nothing to read; NotBuiltError for labels that are vectors.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        pin_memory: bool = False,
    ):
        self.config = config
        self.share = Share(global_batch, micro_batch, rank, world_size, accumulate, pin_memory)
        self.labels = build_labels(config)
        self.source = build_source(config, seed)
        self.order = SampleOrder(self.source.shard_sizes, config.shuffle_window_shards, seed)
        self.skips = SkipCounter(config.max_skip_fraction, self.source.report.problems)
        self.dataset = MicroBatches(self.source, self.order, self.labels, config, seed, micro_batch)
        self._require_same_data_on_all_ranks()

    def __len__(self) -> int:
        """Number of samples N."""
        return len(self.source)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every sample has been seen once: ceil(N / global_batch)."""
        return -(-len(self) // self.share.global_batch)

    @property
    def steps(self) -> int | None:
        """Steps of the run with `one_epoch`; None: it is not ended by its data."""
        return self.steps_per_epoch if self.config.one_epoch else None

    def micro_batches(self, first_step: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches from a global step on, `accumulate` per step, without end.

        Closing the iterator (or dropping it) ends its worker processes.
        Raises: DataError when no substitute is found, or when a worker process died. Whether too large a share of the
            samples is bad is for `skips` to say, with the counts of all ranks.
        """
        return load_micro_batches(
            self.dataset, self.share, first_step, self.config.workers, self.config.prefetch_batches, self.skips
        )

    def fingerprint(self) -> str:
        """SHA-256 over shard names and sizes: two equal ones have the same sample at every position."""
        content = json.dumps([list(self.source.shard_names), [int(size) for size in self.source.shard_sizes]])
        return hashlib.sha256(content.encode()).hexdigest()

    def _require_same_data_on_all_ranks(self) -> None:
        """Machines that found different shards would train on batches that nobody asked for."""
        found = all_gather_objects((self.fingerprint(), len(self), len(self.source.shard_names)))
        other = next((rank for rank, facts in enumerate(found) if facts != found[0]), None)
        if other is not None:
            raise DataError(
                f"data.path: rank 0 found {found[0][1]:,} samples in {found[0][2]:,} shards, rank {other} "
                f"{found[other][1]:,} in {found[other][2]:,}, or the same numbers differently shared out. Give all "
                "machines the same shards; with remote shards, also delete the indices of data.cache_dir."
            )

    def preview(self, count: int) -> Batch:
        """The first `count` samples of the order, centre-cropped: the same in every call.

        Bad samples are replaced as in training, and not counted.
        """
        plain = self.config.model_copy(update={"data_augmentation": False, "color_augmentation": False})
        dataset = MicroBatches(self.source, self.order, self.labels, plain, self.order.seed, min(count, len(self)))
        batch = dataset[0]
        if isinstance(batch, DataError):
            raise batch
        return batch

    def describe(self) -> str:
        """What was found, for the log of a run's start; one line per fact."""
        report = self.source.report
        shards = len(self.source.shard_names)
        lines = [
            f"Data: {len(self):,} samples in {shards:,} {'shard' if shards == 1 else 'shards'} of {self.config.path} "
            f"({self.config.source}); {self.steps_per_epoch:,} steps of {self.share.global_batch} per epoch"
        ]
        if self.config.filter_keys_path is not None:
            lines.append(
                f"Key filter {self.config.filter_keys_path}: {report.filtered_out:,} of {report.listed:,} samples "
                f"left out; {report.unmatched_keys:,} of its keys are not in the data"
            )
        for kind, shards_of_kind in count_by_kind_and_shard(report.problems).items():
            worst = sorted(shards_of_kind.items(), key=lambda item: (-item[1], item[0]))
            named = ", ".join(f"{shard} ({count})" for shard, count in worst[:5])
            more = f" and {len(worst) - 5} more" if len(worst) > 5 else ""
            lines.append(f"Left out: {sum(shards_of_kind.values())} x {kind}: {named}{more}")
        return "\n".join(lines)
