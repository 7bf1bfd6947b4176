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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import DataError, NotBuiltError
from common.random import numpy_generator
from common.registry import Registry, import_object
from data.config import DataConfig
from data.keys import read_key_list
from data.labels import WITHOUT_LABEL, LabelKind, label_kind
from data.listing import list_files
from data.skips import BadSample, Skip

SOURCES = Registry(
    "data source",
    {
        "webdataset": "data.shard_sources:open_shards",
        "folder": "data.sources:open_folder",
        "zip": "data.sources:open_zip",
    },
)

LABEL_FILE = "dataset.json"


@dataclass(frozen=True)
class RawSample:
    """A sample as it is stored.

    Args:
        key: its name in the data set.
        shard: the shard (or folder, or zip file) that holds it.
        image: the bytes of the image file.
        label: class index or caption, or None when labels were not asked for.
        mirrored: the image counts as its mirror image (`xflip`).
    """

    key: str
    shard: str
    image: bytes
    label: int | str | None
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
        labels: read class indices or captions; a sample without one is then left out and reported ("no label" or
            "no caption").
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
    def label(self, index: int) -> int | str | None:
        """Class index or caption; None if the source was opened without labels. Raises: BadSample."""

    def mirrored(self, index: int) -> bool:
        """Whether the sample stands for its mirror image."""
        return False

    def will_need(self, shards: Sequence[int]) -> None:  # noqa: B027 (most sources have nothing to prepare)
        """Announce the numbers of the shards that are read next; remote ones are fetched ahead."""

    def read(self, index: int) -> RawSample:
        """Read a sample. Raises: BadSample."""
        image = self.read_image(index)
        return RawSample(self.key(index), self.shard(index), image, self.label(index), self.mirrored(index))


def build_source(config: DataConfig, seed: int) -> SampleSource:
    """Open the data set of a config.

    In a distributed run every rank must call it (the index of shards is shared).

    Raises: DataError if the path is missing or no sample is left; UserError for an unknown kind of source.
    """
    if option := config.unused_option():
        raise DataError(f"data.{option}: works with data.source folder and zip only, found {config.source}.")
    keep = None if config.filter_keys_path is None else frozenset(read_key_list(config.filter_keys_path))
    source = import_object(SOURCES[config.source])(config, seed, keep)
    if len(source) == 0:
        raise DataError(f"data.path: {config.path}: no sample is left. {_explain_empty(config, source.report)}")
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


# --- folders and zip files -----------------------------------------------------------------------------------


class _NamedImages(SampleSource):
    """Image files that have names; the whole data set counts as one shard.

    Keys are the files' relative names. Labels come from `dataset.json` at the root:
    `{"labels": [[relative name, class index or caption], ...]}`.

    Args:
        path: the folder or file.
        max_size: use a random subset of so many images, chosen by `seed`.
        xflip: list every image a second time, mirrored.
    """

    def __init__(
        self,
        path: Path,
        *,
        labels: LabelKind | None = None,
        keep: frozenset[str] | None = None,
        max_size: int | None = None,
        xflip: bool = False,
        seed: int = 0,
    ):
        self._path = path
        self.shard_names = [path.name]
        names = self._list_names(_image_suffixes())
        self.report = SourceReport()
        label_of: dict[str, int | str] = {}
        if labels is not None:
            label_of = self._read_labels(labels)
            unlabelled = [name for name in names if name not in label_of]
            self.report.problems += [Skip(WITHOUT_LABEL[labels], path.name, name) for name in unlabelled]
            names = [name for name in names if name in label_of]
        self.report.listed = len(names)
        if keep is not None:
            self.report.unmatched_keys = len(keep.difference(names))
            names = [name for name in names if name in keep]
            self.report.filtered_out = self.report.listed - len(names)
        if max_size is not None and len(names) > max_size:
            chosen = numpy_generator(seed, "max_size").choice(len(names), max_size, replace=False)
            names = [names[i] for i in np.sort(chosen)]
        self._names = PackedStrings(names)
        self._labels = None
        if labels is not None:
            values = [label_of[name] for name in names]
            self._labels = PackedStrings(values) if labels == "caption" else np.array(values, dtype=np.int64)
        self.shard_sizes = np.array([len(names) * (2 if xflip else 1)], dtype=np.int64)

    def key(self, index: int) -> str:
        return self._names[index % len(self._names)]

    def shard(self, index: int) -> str:
        return self.shard_names[0]

    def mirrored(self, index: int) -> bool:
        return index >= len(self._names)

    def label(self, index: int) -> int | str | None:
        if self._labels is None:
            return None
        label = self._labels[index % len(self._names)]
        return label if isinstance(label, str) else int(label)

    def read_image(self, index: int, limit: int | None = None) -> bytes:
        return self._read_file(self.key(index), limit)

    @abstractmethod
    def _list_names(self, suffixes: tuple[str, ...]) -> list[str]:
        """Relative names of the files with these suffixes, sorted."""

    @abstractmethod
    def _read_file(self, name: str, limit: int | None = None) -> bytes:
        """Bytes of a file. Raises: BadSample."""

    def _read_labels(self, kind: LabelKind) -> dict[str, int | str]:
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
        return parse_labels(place, content, kind)


def parse_labels(place: str, content: object, kind: LabelKind = "class") -> dict[str, int | str]:
    """Relative name -> class index or caption, from the content of a `dataset.json`.

    Raises: DataError for another layout or kind of label; NotBuiltError for labels that are vectors.
    """
    pairs = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError(f'{place}: expected {{"labels": [[relative name, label], ...]}}.')
    expected = int if kind == "class" else str
    for name, label in pairs:
        if isinstance(label, list):
            raise NotBuiltError(f"{place}: {name}: found the label {label!r}. Labels that are vectors are not built.")
        if not isinstance(label, expected) or isinstance(label, bool):
            wanted = "a class index" if kind == "class" else "a text (data.label_type is text)"
            raise DataError(f"{place}: {name}: found the label {label!r}, expected {wanted}.")
    return {str(name): label for name, label in pairs}


def open_folder(config: DataConfig, seed: int, keep: frozenset[str] | None) -> SampleSource:
    """The source for `data.source: folder`."""
    return _open_files(ImageFolderSource, config, seed, keep)


def open_zip(config: DataConfig, seed: int, keep: frozenset[str] | None) -> SampleSource:
    """The source for `data.source: zip`."""
    return _open_files(ZipSource, config, seed, keep)


def _open_files(kind: type[_NamedImages], config: DataConfig, seed: int, keep: frozenset[str] | None) -> SampleSource:
    path = Path(config.path).expanduser()
    if not path.exists():
        raise DataError(f"data.path: {path} does not exist.")
    return kind(path, labels=label_kind(config), keep=keep, max_size=config.max_size, xflip=config.xflip, seed=seed)


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
