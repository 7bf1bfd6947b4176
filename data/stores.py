"""Tar shards by name, wherever they are: their indices, and files to read them from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from common.errors import DataError
from common.files import write_text_atomically
from data.config import DataConfig
from data.download import Downloaded, DownloadLimits, NotDownloaded, download
from data.locations import PIPE, is_remote, names_shards, read_places, shard_names
from data.shard_cache import ShardCache
from data.shards import (
    INDEX_VERSION,
    SIZES_FILE,
    ShardIndex,
    index_from_values,
    index_shards,
    index_values,
    list_shards,
    scan_file,
    shard_root,
    user_cache,
)
from data.skips import BadSample, Skip

logger = logging.getLogger(__name__)

COUNT_FILES = (SIZES_FILE, "index.json")
"""Files beside remote shards that say how many samples each holds; the second is what WebDataset's `wids` writes."""


class ShardStore(Protocol):
    """Shards by name."""

    names: list[str]
    named: bool  # `data.path` names the shards, so one that is not there is missing

    def indices(self) -> Iterator[ShardIndex]:
        """The indices of all shards, in the order of `names`. Every rank must call it."""
        ...

    def open(self, shard: str) -> int:
        """File descriptor of a shard. Raises: OSError, BadSample or DataError."""
        ...

    def will_need(self, shards: Sequence[str]) -> None:
        """Announce which shards are read next."""
        ...


def open_store(config: DataConfig) -> ShardStore:
    """The shards that `data.path` means.

    Raises: DataError if it is malformed, mixes URLs with paths, or is not there.
    """
    if not names_shards(config.path):
        path = Path(config.path).expanduser()
        if not path.exists():
            raise DataError(f"data.path: {path} does not exist.")
        return LocalShards(shard_root(path), list_shards(path), config.index_dir, named=False)
    places = read_places(config.path)
    root, names = shard_names(places)
    remote = [place for place in places if is_remote(place)]
    if not remote:
        return LocalShards(Path(root), names, config.index_dir, named=True)
    if len(remote) < len(places):
        raise DataError(f"data.path: {config.path} mixes URLs (such as {remote[0]}) with paths; give one kind.")
    folder = Path(config.cache_dir).expanduser() if config.cache_dir else user_cache() / "remote"
    limits = DownloadLimits(config.download_attempts, config.download_timeout_s)
    cache = ShardCache(folder / "shards", round(config.cache_max_gb * 1e9), limits)
    index_folder = Path(config.index_dir).expanduser() if config.index_dir else folder / "index"
    return RemoteShards(dict(zip(names, places, strict=True)), cache, index_folder)


class LocalShards:
    """Shards in a folder of this machine.

    Args:
        root: the folder.
        names: relative to it.
        index_dir: where indices are cached; None: beside the shards.
        named: the user named every shard.
    """

    def __init__(self, root: Path, names: Sequence[str], index_dir: str | None, named: bool):
        self.names = list(names)
        self.named = named
        self._root = root
        self._index_dir = index_dir

    def indices(self) -> Iterator[ShardIndex]:
        return index_shards(self._root, self._index_dir, self.names)

    def open(self, shard: str) -> int:
        return os.open(self._root / shard, os.O_RDONLY)

    def will_need(self, shards: Sequence[str]) -> None:
        """Nothing has to be fetched."""


class RemoteShards:
    """Shards behind URLs, read from a cache of whole files.

    The index of a shard is made when it is first downloaded, and kept when the shard is evicted. It holds the shard's
    size and SHA-256: a shard that is downloaded again must be the same.

    Args:
        places: name -> URL or command.
        cache: where shards are kept.
        index_folder: where indices are kept. On a file system that all machines share, they share the work.
    """

    named = True

    def __init__(self, places: dict[str, str], cache: ShardCache, index_folder: Path):
        self.names = list(places)
        self._places = places
        self._cache = cache
        self._index_folder = index_folder
        self._needed: queue.SimpleQueue[list[str]] | None = None

    def __getstate__(self):
        return self.__dict__ | {"_needed": None}

    # --- how many samples there are ------------------------------------------------------------------------------

    def counts(self) -> list[int] | None:
        """Samples in each shard, from files that lie beside the shards; None if there is none or it lacks a shard.

        With these, no shard is needed before its samples are. Every rank must call it.
        Raises: DataError if the other side does not answer, or such a file has another layout.
        """
        from common import distributed  # imports torch, which reading data does without

        def read() -> list[int] | None:
            counts: dict[str, int] = {}
            for folder in sorted(
                {_sibling(place, "") for place in self._places.values() if not place.startswith(PIPE)}
            ):
                counts |= self._counts_of_folder(folder)
            found = [counts.get(_without_query(place)) for place in self._places.values()]
            if None in found and counts:
                lacking = self.names[found.index(None)]
                logger.warning("The counts beside the shards do not name %s, so every shard is scanned.", lacking)
            return None if None in found else [count for count in found if count is not None]

        return distributed.on_rank_0(read)

    def _counts_of_folder(self, folder: str) -> dict[str, int]:
        """Path of a shard -> its number of samples."""
        for name in COUNT_FILES:
            url = _sibling(folder, name)
            content = self._read_json(url)
            if content is not None:
                return {_without_query(_sibling(folder, shard)): n for shard, n in parse_counts(url, content)}
        return {}

    def _read_json(self, url: str) -> Any:
        """Content of a small file; None if the other side says that there is none."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "content")
            try:
                download(url, target, self._cache.limits)
            except NotDownloaded as error:
                if error.permanent:
                    return None
                raise DataError(f"data.path: {error}. Is the address right, and the other side up?") from error
            try:
                return json.loads(target.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(f"{url}: not valid JSON ({error}).") from error

    # --- indices ---------------------------------------------------------------------------------------------------

    def indices(self) -> Iterator[ShardIndex]:
        """Scans what has no index yet: the ranks share the work, then those of a machine what its cache lacks.

        A shard that cannot be had has an index that says so: this run, and one that resumes it, do without it.
        """
        from common import distributed  # as above

        shares = (
            (distributed.rank(), distributed.world_size()),
            (distributed.local_rank(), distributed.local_world_size()),
        )
        for share, sharers in shares:
            error = None
            try:
                for shard in self.names[share::sharers]:
                    if not self._index_path(shard).exists():
                        self._index_or_problem(shard)
            except DataError as met:
                error = met
            distributed.raise_together(error)
        for shard in self.names:
            index, content = self._index_or_problem(shard)
            if content is None:
                logger.warning("%s is left out; delete %s to ask for it again.", shard, self._index_path(shard))
            yield index

    def _index_or_problem(self, shard: str) -> tuple[ShardIndex, Downloaded | None]:
        try:
            return self._load_index(shard) or self._make_index(shard)
        except BadSample as bad:
            index = ShardIndex(shard, {}, (Skip(bad.kind, shard, detail=bad.detail),))
            self._store_index(index, None)
            return index, None

    def index(self, shard: str) -> ShardIndex:
        """The index of a shard, which is downloaded if it has none yet. Raises: BadSample, DataError."""
        return (self._load_index(shard) or self._make_index(shard))[0]

    def known_index(self, shard: str) -> ShardIndex | None:
        """The index of a shard if it is here; nothing is downloaded."""
        known = self._load_index(shard)
        return known[0] if known else None

    def _make_index(self, shard: str) -> tuple[ShardIndex, Downloaded]:
        with open(self._cache.open(self._places[shard]), "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            content = Downloaded(os.fstat(file.fileno()).st_size, sha256)
            file.seek(0)
            index = scan_file(file, shard)
        self._store_index(index, content)
        return index, content

    def _index_path(self, shard: str) -> Path:
        path = self._cache.path(self._places[shard])
        return self._index_folder / path.parent.name / f"{path.name}.json"

    def _store_index(self, index: ShardIndex, content: Downloaded | None) -> None:
        facts = {"version": INDEX_VERSION, "size": content and content.size, "sha256": content and content.sha256}
        try:
            write_text_atomically(
                self._index_path(index.shard), json.dumps(facts | index_values(index), ensure_ascii=False)
            )
        except OSError as error:
            raise DataError(f"data.index_dir: {self._index_folder} cannot be written ({error.strerror}).") from error

    def _load_index(self, shard: str) -> tuple[ShardIndex, Downloaded | None] | None:
        """The stored index with what the shard was then (None: it could not be had); None if there is none."""
        try:
            content = json.loads(self._index_path(shard).read_text(encoding="utf-8"))
            if content["version"] != INDEX_VERSION:
                return None
            then = None if content["sha256"] is None else Downloaded(content["size"], content["sha256"])
            return index_from_values(shard, content), then
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    # --- reading -----------------------------------------------------------------------------------------------------

    def open(self, shard: str) -> int:
        known = self._load_index(shard)
        expected = known[1] if known else None
        descriptor = self._cache.open(self._places[shard], expected)
        if expected is not None and os.fstat(descriptor).st_size != expected.size:
            os.close(descriptor)
            raise BadSample("changed shard", f"{self._cache.path(self._places[shard])} is not what was indexed")
        return descriptor

    def will_need(self, shards: Sequence[str]) -> None:
        """Start to download these in a thread of this process; what another process downloads is left to it."""
        if self._needed is None:
            self._needed = queue.SimpleQueue()
            threading.Thread(target=self._fetch_ahead, args=(self._needed,), daemon=True).start()
        self._needed.put(list(shards))

    def _fetch_ahead(self, needed: queue.SimpleQueue[list[str]]) -> None:
        while True:
            shards = needed.get()
            keep = [self._places[shard] for shard in shards]
            for shard in shards:
                if not needed.empty():
                    break  # newer needs
                try:
                    known = self._load_index(shard)
                    if not self._cache.fetch_ahead(self._places[shard], known[1] if known else None, keep):
                        break
                except (BadSample, DataError):
                    continue  # whoever reads the shard meets the same error, and reports it


def parse_counts(place: str, content: Any) -> Iterator[tuple[str, int]]:
    """(file name of a shard, number of its samples) from `{"name.tar": 1000, ...}`, or from the index of `wids`.

    Raises: DataError for another layout.
    """
    listed = content.get("shardlist") if isinstance(content, dict) else None
    if isinstance(listed, list) and all(isinstance(entry, dict) for entry in listed):
        entries = [(entry.get("url"), entry.get("nsamples")) for entry in listed]
    else:
        entries = list(content.items()) if isinstance(content, dict) else [(None, None)]
    for name, count in entries:
        if not isinstance(name, str) or not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise DataError(
                f'{place}: expected {{"shard.tar": number of samples, ...}} or the index of wids (a "shardlist" of '
                '"url" and "nsamples").'
            )
        yield posixpath.basename(name), count


def _sibling(url: str, name: str) -> str:
    """URL of the file `name` in the folder of another URL."""
    parts = urlsplit(url)
    return parts._replace(path=posixpath.join(posixpath.dirname(parts.path), name)).geturl()


def _without_query(url: str) -> str:
    return url.partition("?")[0]
