"""Sources of tar shards: indexed as a whole at the start, or shard by shard as they are read."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from common.errors import DataError
from data.config import DataConfig
from data.decode import IMAGE_EXTENSIONS
from data.labels import LABEL_EXTENSIONS, WITHOUT_LABEL, LabelKind, label_kind, parse_label
from data.shards import Extent, ShardIndex
from data.skips import BadSample, Skip
from data.sources import PackedStrings, SampleSource, SourceReport
from data.stores import RemoteShards, ShardStore, open_store

_OPEN_SHARDS = 32


def open_shards(config: DataConfig, seed: int, keep: frozenset[str] | None) -> SampleSource:
    """The source for `data.source: webdataset`.

    Remote shards with counts beside them are downloaded when they are needed, unless a key filter has to know what is
    in them. Every rank must call it.

    Raises: DataError if there are no such shards, or too many of those that `data.path` names are missing.
    """
    store = open_store(config)
    counts = store.counts() if isinstance(store, RemoteShards) and keep is None else None
    if counts is not None:
        return CountedWebDatasetSource(store, counts, labels=label_kind(config))
    source = WebDatasetSource(store, labels=label_kind(config), keep=keep)
    if store.named:
        _check_missing(source, config.max_skip_fraction)
    return source


def _check_missing(source: SampleSource, max_fraction: float) -> None:
    """Raise DataError if too large a share of the shards that were asked for by name is missing."""
    missing = [problem for problem in source.report.problems if problem.kind == "missing shard"]
    if len(missing) > max_fraction * len(source.shard_names):
        shown = "; ".join(str(problem) for problem in missing[:5])
        raise DataError(
            f"data.path: {len(missing)} of {len(source.shard_names)} shards are missing, expected at most "
            f"data.max_skip_fraction = {max_fraction:g}. {shown}."
        )


class _ShardFiles:
    """Open shards, the least recently used ones closed. Reads by offset, so copies in forked processes are safe."""

    def __init__(self, store: ShardStore):
        self._store = store
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def __reduce__(self):
        return _ShardFiles, (self._store,)

    def __del__(self):
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read(self, shard: str, offset: int, size: int) -> bytes:
        try:
            content = os.pread(self._descriptor(shard), size, offset)
        except FileNotFoundError as error:
            raise BadSample("missing shard", str(error)) from error
        except OSError as error:
            raise BadSample("unreadable shard", str(error)) from error
        if len(content) < size:
            raise BadSample("truncated shard", "it is shorter than when it was indexed")
        return content

    def _descriptor(self, shard: str) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
        else:
            self._descriptors[shard] = self._store.open(shard)
            if len(self._descriptors) > _OPEN_SHARDS:
                os.close(self._descriptors.popitem(last=False)[1])
        return self._descriptors[shard]


class WebDatasetSource(SampleSource):
    """WebDataset tar shards: `<key>.jpg|jpeg|png|webp`, and `<key>.cls` with the class index (or `<key>.txt`).

    Args:
        store: the shards; all of them are indexed now.
    """

    def __init__(self, store: ShardStore, *, labels: LabelKind | None = None, keep: frozenset[str] | None = None):
        self.report = SourceReport()
        self.shard_names: list[str] = []
        self._label_kind = labels
        self._store = store
        self._files = _ShardFiles(store)
        table = _SampleTable(labels, keep, self.report)
        sizes = []
        for index in store.indices():
            self.shard_names.append(index.shard)
            sizes.append(table.add(index))
        self.report.unmatched_keys = 0 if keep is None else len(keep - table.seen)
        self.shard_sizes = np.array(sizes, dtype=np.int64)
        self._shard_ends = np.cumsum(self.shard_sizes)
        self._keys = PackedStrings(table.keys)
        # [N, 2] offset and size of the image and of the label
        self._images = np.array(table.images, dtype=np.int64).reshape(-1, 2)
        self._labels = np.array(table.labels, dtype=np.int64).reshape(-1, 2)

    def key(self, index: int) -> str:
        return self._keys[index]

    def shard(self, index: int) -> str:
        return self.shard_names[int(np.searchsorted(self._shard_ends, index, side="right"))]

    def read_image(self, index: int, limit: int | None = None) -> bytes:
        offset, size = (int(number) for number in self._images[index])
        return self._files.read(self.shard(index), offset, size if limit is None else min(size, limit))

    def label(self, index: int) -> int | str | None:
        if self._label_kind is None:
            return None
        extent = Extent(*(int(number) for number in self._labels[index]))
        return parse_label(self._label_kind, self._files.read(self.shard(index), *extent))

    def will_need(self, shards: Sequence[int]) -> None:
        self._store.will_need([self.shard_names[shard] for shard in shards])


class CountedWebDatasetSource(SampleSource):
    """Remote WebDataset shards whose sizes are known, while what is in them is learned when they are read.

    A sample is a shard and a number in it. Where a shard turns out to hold fewer usable samples, those that are
    lacking are bad samples; keys that occur in several shards are not noticed.

    Args:
        store: the shards.
        counts: the number of samples in each.
    """

    def __init__(self, store: RemoteShards, counts: Sequence[int], *, labels: LabelKind | None = None):
        self.report = SourceReport(listed=sum(counts))
        self.shard_names = store.names
        self.shard_sizes = np.array(counts, dtype=np.int64)
        self._shard_ends = np.cumsum(self.shard_sizes)
        self._label_kind = labels
        self._store = store
        self._files = _ShardFiles(store)
        self._tables: OrderedDict[int, _SampleTable] = OrderedDict()

    def key(self, index: int) -> str:
        shard, number = self._place(index)
        if shard not in self._tables and self._store.known_index(self.shard_names[shard]) is None:
            return ""  # only the shard tells, and it is not here
        table = self._table(shard)
        return table.keys[number] if number < len(table.keys) else ""

    def shard(self, index: int) -> str:
        return self.shard_names[self._place(index)[0]]

    def read_image(self, index: int, limit: int | None = None) -> bytes:
        shard, table, number = self._find(index)
        offset, size = table.images[number]
        return self._files.read(self.shard_names[shard], offset, size if limit is None else min(size, limit))

    def label(self, index: int) -> int | str | None:
        if self._label_kind is None:
            return None
        shard, table, number = self._find(index)
        return parse_label(self._label_kind, self._files.read(self.shard_names[shard], *table.labels[number]))

    def will_need(self, shards: Sequence[int]) -> None:
        self._store.will_need([self.shard_names[shard] for shard in shards])

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the shard, number of the sample in it)."""
        shard = int(np.searchsorted(self._shard_ends, index, side="right"))
        return shard, index - int(self._shard_ends[shard] - self.shard_sizes[shard])

    def _find(self, index: int) -> tuple[int, _SampleTable, int]:
        """The shard that holds a sample, what is in it, and the sample's number there. Raises: BadSample."""
        shard, number = self._place(index)
        table = self._table(shard)
        if number >= len(table.keys):
            raise BadSample(
                "miscounted shard",
                f"{len(table.keys)} of {self.shard_sizes[shard]} counted samples can be used; {table.first_problem()}",
            )
        return shard, table, number

    def _table(self, shard: int) -> _SampleTable:
        if shard not in self._tables:
            table = _SampleTable(self._label_kind, None, SourceReport())
            table.add(self._store.index(self.shard_names[shard]))
            self._tables[shard] = table
            if len(self._tables) > _OPEN_SHARDS:
                self._tables.popitem(last=False)
        self._tables.move_to_end(shard)
        return self._tables[shard]


class _SampleTable:
    """Collects the usable samples of shard after shard."""

    def __init__(self, label_kind: LabelKind | None, keep: frozenset[str] | None, report: SourceReport):
        self._label_kind = label_kind
        self._keep = keep
        self._report = report
        self.seen: set[str] = set()
        self.keys: list[str] = []
        self.images: list[Extent] = []
        self.labels: list[Extent] = []

    def add(self, index: ShardIndex) -> int:
        """Take over a shard; returns how many samples it gave."""
        before = len(self.keys)
        self._report.problems += index.problems
        for key, extents in index.samples.items():
            image = next((extents[extension] for extension in IMAGE_EXTENSIONS if extension in extents), None)
            problem = self._problem(key, extents, image)
            if problem:
                self._report.problems.append(Skip(problem, index.shard, key))
                continue
            assert image is not None
            self.seen.add(key)
            self._report.listed += 1
            if self._keep is not None and key not in self._keep:
                self._report.filtered_out += 1
                continue
            self.keys.append(key)
            self.images.append(image)
            if self._label_kind is not None:
                self.labels.append(extents[LABEL_EXTENSIONS[self._label_kind]])
        return len(self.keys) - before

    def _problem(self, key: str, extents: dict[str, Extent], image: Extent | None) -> str | None:
        if key in self.seen:
            return "duplicate key"
        if image is None:
            return "no image"
        if self._label_kind is not None and LABEL_EXTENSIONS[self._label_kind] not in extents:
            return WITHOUT_LABEL[self._label_kind]
        return None

    def first_problem(self) -> str:
        """What is wrong with the shard, as far as its index tells."""
        return str(self._report.problems[0]) if self._report.problems else "nothing else is wrong with it"
