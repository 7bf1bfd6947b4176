"""Sample sources: numbered samples of a data set, whatever it is stored as.

A source reads bytes by index and nothing more; order, decoding and augmentation are elsewhere. Sources can be copied
into worker processes: they open their files when they first read from them.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import DataError, NotBuiltError
from common.random import numpy_generator
from common.registry import Registry, import_object
from data.config import DataConfig
from data.decode import IMAGE_EXTENSIONS
from data.keys import read_key_list
from data.listing import list_files
from data.shards import Extent, ShardIndex, index_shards, shard_root
from data.skips import BadSample, Skip

SOURCES = Registry(
    "data source",
    {
        "webdataset": "data.sources:WebDatasetSource",
        "folder": "data.sources:ImageFolderSource",
        "zip": "data.sources:ZipSource",
    },
)

LABEL_FILE = "dataset.json"
_OPEN_SHARDS = 32


@dataclass(frozen=True)
class RawSample:
    """A sample as it is stored.

    Args:
        key: its name in the data set.
        shard: the shard (or folder, or zip file) that holds it.
        image: the bytes of the image file.
        label: class index, or None when labels were not asked for.
        mirrored: the image counts as its mirror image (`xflip`).
    """

    key: str
    shard: str
    image: bytes
    label: int | None
    mirrored: bool = False


@dataclass
class SourceReport:
    """What was found when a source was opened.

    Args:
        listed: samples before the key filter (and `max_size`).
        filtered_out: samples that the key filter left out.
        unmatched_keys: keys of the filter that the data set does not have.
        problems: what cannot be used, by shard and key.
    """

    listed: int = 0
    filtered_out: int = 0
    unmatched_keys: int = 0
    problems: list[Skip] = field(default_factory=list)


class SampleSource(ABC):
    """Numbered samples, shard after shard.

    Args of every source:
        path: where the data set is.
        with_labels: read class labels; a sample without one is then left out and reported ("no label").
        keep: keys to keep, or None for all.
    """

    shard_names: list[str]
    shard_sizes: np.ndarray
    report: SourceReport

    def __len__(self) -> int:
        return int(self.shard_sizes.sum())

    @abstractmethod
    def key(self, index: int) -> str:
        """The sample's key."""

    @abstractmethod
    def shard(self, index: int) -> str:
        """Name of the shard that holds the sample."""

    @abstractmethod
    def read_image(self, index: int, limit: int | None = None) -> bytes:
        """Bytes of the image file, or its first `limit` bytes. Raises: BadSample."""

    @abstractmethod
    def label(self, index: int) -> int | None:
        """Class index; None if the source was opened without labels. Raises: BadSample."""

    def mirrored(self, index: int) -> bool:
        """Whether the sample stands for its mirror image."""
        return False

    def read(self, index: int) -> RawSample:
        """Read a sample. Raises: BadSample."""
        image = self.read_image(index)
        return RawSample(self.key(index), self.shard(index), image, self.label(index), self.mirrored(index))


def build_source(config: DataConfig, seed: int) -> SampleSource:
    """Open the data set of a config.

    In a distributed run every rank must call it (the index of shards is shared).

    Raises: NotBuiltError for a URL; DataError if the path is missing or no sample is left; UserError for an unknown
        kind of source.
    """
    if "://" in config.path or config.path.startswith("pipe:"):
        raise NotBuiltError(
            f"data.path: found {config.path!r}. Remote data is not built; copy it to a local folder and name that."
        )
    if option := config.unused_option():
        raise DataError(f"data.{option}: works with data.source folder and zip only, found {config.source}.")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise DataError(f"data.path: {path} does not exist.")
    keep = None if config.filter_keys_path is None else frozenset(read_key_list(config.filter_keys_path))
    with_labels = config.label_type != "none"
    source_class = import_object(SOURCES[config.source])
    if config.source == "webdataset":
        source = source_class(path, with_labels=with_labels, keep=keep, index_dir=config.index_dir)
    else:
        source = source_class(
            path, with_labels=with_labels, keep=keep, max_size=config.max_size, xflip=config.xflip, seed=seed
        )
    if len(source) == 0:
        raise DataError(f"data.path: {path}: no sample is left. {_explain_empty(config, source.report)}")
    return source


def _explain_empty(config: DataConfig, report: SourceReport) -> str:
    if report.problems:
        shown = "; ".join(str(problem) for problem in report.problems[:5])
        return f"{len(report.problems)} problems, the first: {shown}."
    if report.filtered_out:
        return (
            f"None of its {report.listed} samples is in the key list {config.filter_keys_path}; a key looks different "
            "there, or the list belongs to another data set."
        )
    expected = {"webdataset": "*.tar shards", "folder": "image files", "zip": "image files in the archive"}
    return f"Expected {expected[config.source]} (data.source is {config.source})."


# --- WebDataset shards ---------------------------------------------------------------------------------------


class PackedStrings(Sequence[str]):
    """Many short strings in two arrays: a million keys cost no Python objects in every loader process."""

    def __init__(self, strings: Iterable[str]):
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")


class _ShardFiles:
    """Open shards, the least recently used ones closed. Reads by offset, so copies in forked processes are safe."""

    def __init__(self, root: Path):
        self._root = root
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def __reduce__(self):
        return _ShardFiles, (self._root,)

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
            self._descriptors[shard] = os.open(self._root / shard, os.O_RDONLY)
            if len(self._descriptors) > _OPEN_SHARDS:
                os.close(self._descriptors.popitem(last=False)[1])
        return self._descriptors[shard]


class WebDatasetSource(SampleSource):
    """WebDataset tar shards: `<key>.jpg|jpeg|png|webp`, and `<key>.cls` with the class index as text.

    Args:
        path: folder that is searched recursively for *.tar, or one such file.
        index_dir: where shard indices are cached; None: beside the shards.
    """

    def __init__(
        self,
        path: Path,
        *,
        with_labels: bool = False,
        keep: frozenset[str] | None = None,
        index_dir: str | None = None,
    ):
        self.report = SourceReport()
        self.shard_names: list[str] = []
        self._with_labels = with_labels
        self._files = _ShardFiles(shard_root(path))
        table = _SampleTable(with_labels, keep, self.report)
        sizes = []
        for index in index_shards(path, index_dir):
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

    def label(self, index: int) -> int | None:
        if not self._with_labels:
            return None
        content = self._files.read(self.shard(index), *(int(number) for number in self._labels[index]))
        try:
            return int(content)
        except ValueError as error:
            raise BadSample("bad label", f"found {content[:20]!r}, expected a class index") from error


class _SampleTable:
    """Collects the usable samples of shard after shard."""

    def __init__(self, with_labels: bool, keep: frozenset[str] | None, report: SourceReport):
        self._with_labels = with_labels
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
            if self._with_labels:
                self.labels.append(extents["cls"])
        return len(self.keys) - before

    def _problem(self, key: str, extents: dict[str, Extent], image: Extent | None) -> str | None:
        if key in self.seen:
            return "duplicate key"
        if image is None:
            return "no image"
        if self._with_labels and "cls" not in extents:
            return "no label"
        return None


# --- folders and zip files -----------------------------------------------------------------------------------


class _NamedImages(SampleSource):
    """Image files that have names; the whole data set counts as one shard.

    Keys are the files' relative names. Labels come from `dataset.json` at the root:
    `{"labels": [[relative name, class index], ...]}`.

    Args:
        max_size: use a random subset of so many images, chosen by `seed`.
        xflip: list every image a second time, mirrored.
    """

    def __init__(
        self,
        path: Path,
        *,
        with_labels: bool = False,
        keep: frozenset[str] | None = None,
        max_size: int | None = None,
        xflip: bool = False,
        seed: int = 0,
    ):
        self._path = path
        self.shard_names = [path.name]
        names = self._list_names(_image_suffixes())
        labels = self._read_labels() if with_labels else None
        unlabelled = [] if labels is None else [name for name in names if name not in labels]
        self.report = SourceReport(problems=[Skip("no label", path.name, name) for name in unlabelled])
        if unlabelled:
            names = [name for name in names if name in labels]
        self.report.listed = len(names)
        if keep is not None:
            self.report.unmatched_keys = len(keep.difference(names))
            names = [name for name in names if name in keep]
            self.report.filtered_out = self.report.listed - len(names)
        if max_size is not None and len(names) > max_size:
            chosen = numpy_generator(seed, "max_size").choice(len(names), max_size, replace=False)
            names = [names[i] for i in np.sort(chosen)]
        self._names = PackedStrings(names)
        self._labels = None if labels is None else np.array([labels[name] for name in names], dtype=np.int64)
        self.shard_sizes = np.array([len(names) * (2 if xflip else 1)], dtype=np.int64)

    def key(self, index: int) -> str:
        return self._names[index % len(self._names)]

    def shard(self, index: int) -> str:
        return self.shard_names[0]

    def mirrored(self, index: int) -> bool:
        return index >= len(self._names)

    def label(self, index: int) -> int | None:
        return None if self._labels is None else int(self._labels[index % len(self._names)])

    def read_image(self, index: int, limit: int | None = None) -> bytes:
        return self._read_file(self.key(index), limit)

    @abstractmethod
    def _list_names(self, suffixes: tuple[str, ...]) -> list[str]:
        """Relative names of the files with these suffixes, sorted."""

    @abstractmethod
    def _read_file(self, name: str, limit: int | None = None) -> bytes:
        """Bytes of a file. Raises: BadSample."""

    def _read_labels(self) -> dict[str, int]:
        place = f"{self._path}: {LABEL_FILE}"
        try:
            content = json.loads(self._read_file(LABEL_FILE))
        except BadSample as error:
            raise DataError(
                f"{place} cannot be read ({error.detail}). Labels are asked for (data.label_type); add the file, or "
                "set data.label_type to none."
            ) from error
        except ValueError as error:
            raise DataError(f"{place}: not valid JSON ({error}).") from error
        return parse_labels(place, content)


def parse_labels(place: str, content: object) -> dict[str, int]:
    """Relative name -> class index, from the content of a `dataset.json`.

    Raises: DataError for another layout; NotBuiltError for labels that are texts or vectors.
    """
    pairs = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError(f'{place}: expected {{"labels": [[relative name, class index], ...]}}.')
    for name, label in pairs:
        if not isinstance(label, int) or isinstance(label, bool):
            raise NotBuiltError(
                f"{place}: {name}: found the label {label!r}. Only class indices are built, not texts or vectors."
            )
    return {str(name): label for name, label in pairs}


class ImageFolderSource(_NamedImages):
    """A folder of images, searched recursively, in order of relative name."""

    def _list_names(self, suffixes: tuple[str, ...]) -> list[str]:
        if not self._path.is_dir():
            raise DataError(f"data.path: {self._path} is not a folder (data.source is folder).")
        return list_files(self._path, suffixes)

    def _read_file(self, name: str, limit: int | None = None) -> bytes:
        try:
            with open(self._path / name, "rb") as file:
                return file.read(-1 if limit is None else limit)
        except OSError as error:
            raise BadSample("unreadable file", str(error)) from error


class ZipSource(_NamedImages):
    """A .zip file of images, in order of name."""

    def __init__(self, path: Path, **options):
        self._archive: zipfile.ZipFile | None = None
        self._process = -1
        super().__init__(path, **options)

    def __getstate__(self):
        return self.__dict__ | {"_archive": None, "_process": -1}

    def _open(self) -> zipfile.ZipFile:
        # An open archive has one file position: a forked process needs its own.
        if self._archive is None or self._process != os.getpid():
            self._archive = zipfile.ZipFile(self._path)
            self._process = os.getpid()
        return self._archive

    def _list_names(self, suffixes: tuple[str, ...]) -> list[str]:
        try:
            members = self._open().infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"data.path: {self._path} cannot be read as a zip file ({error}).") from error
        names = {member.filename for member in members if not member.is_dir()}
        return sorted(name for name in names if name.lower().endswith(suffixes) and not _is_hidden(name))

    def _read_file(self, name: str, limit: int | None = None) -> bytes:
        try:
            with self._open().open(name) as file:
                return file.read(-1 if limit is None else limit)
        except KeyError as error:
            raise BadSample("unreadable file", f"{name} is not in the archive") from error
        except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise BadSample("unreadable file", str(error)) from error


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _image_suffixes() -> tuple[str, ...]:
    """Suffixes of the image formats that PIL can read, with their dots."""
    from PIL import Image

    return tuple(suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN)
