"""Remote shards on local disk: each is downloaded whole, once per machine, and the least recently used ones go first.

All processes of a machine share the folder. A shard is written beside its final name under a lock of its own (which
the system releases if its holder dies), so what has its final name is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import posixpath
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from common.errors import DataError
from data.download import Downloaded, DownloadLimits, NotDownloaded, download
from data.locations import PIPE
from data.skips import BadSample

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 600.0
"""A shard that could not be had is asked for again after so many seconds."""

_OPEN_ATTEMPTS = 3


class ShardCache:
    """A folder of downloaded shards.

    Args:
        folder: where they are kept; on a disk of this machine.
        max_bytes: the whole shards in it never take more; those being downloaded come on top.
        limits: how patient a download is.
    """

    def __init__(self, folder: Path, max_bytes: int, limits: DownloadLimits):
        self.folder = folder
        self.max_bytes = max_bytes
        self.limits = limits

    def path(self, url: str) -> Path:
        """Where the shard of a URL is, or will be. Credentials and other query parameters do not count."""
        bare = url if url.startswith(PIPE) else urlsplit(url)._replace(query="", fragment="").geturl()
        name = "shard.tar" if url.startswith(PIPE) else posixpath.basename(urlsplit(url).path) or "shard.tar"
        return self.folder / hashlib.sha256(bare.encode()).hexdigest()[:16] / name

    def open(self, url: str, expected: Downloaded | None = None) -> int:
        """A file descriptor of the whole shard, downloaded if it is not here. It stays good if the shard is evicted.

        Args:
            expected: what the shard was when it was indexed.

        Raises: BadSample of the kinds "missing shard" (it cannot be had) and "changed shard" (it is not what was
            expected); DataError if the cache cannot hold it.
        """
        path = self.path(url)
        for _ in range(_OPEN_ATTEMPTS):  # another process may evict it between download and open
            self.fetch(url, expected)
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY)
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path)
                return descriptor
        raise DataError(
            f"data.cache_max_gb: {self.max_bytes / 1e9:g} GB is too little: {path.name} was removed for other shards "
            "before it could be read."
        )

    def fetch(self, url: str, expected: Downloaded | None = None) -> Downloaded | None:
        """Make sure that a shard is here; what was downloaded for that, None if it was here. Raises: as `open`."""
        path = self.path(url)
        if path.exists():
            return None
        with self._locked(path):
            return None if path.exists() else self._download(url, path, expected)

    def fetch_ahead(self, url: str, expected: Downloaded | None, keep: Collection[str]) -> bool:
        """Download a shard before it is needed, unless it is here or another process is at it.

        Args:
            keep: URLs of shards that must not be evicted for it.

        Returns: False if there is no room for it. Raises: as `open`.
        """
        path = self.path(url)
        if path.exists():
            return True
        with self._locked(path, wait=False) as held:
            if not held or path.exists():
                return True
            sizes = [kept.stat().st_size for kept in map(self.path, keep) if kept.exists()]
            if sum(sizes) + max(sizes, default=0) > self.max_bytes:
                return False
            self._download(url, path, expected)
        return True

    def _download(self, url: str, path: Path, expected: Downloaded | None) -> Downloaded:
        """Download a shard under its lock."""
        failed, partial = path.with_name(".failed"), path.with_name(".partial")
        self._raise_if_it_failed_lately(failed)
        try:
            found = download(url, partial, self.limits)
            if expected is not None and found != expected:
                raise BadSample("changed shard", f"{url} is not what was indexed (found {found}, indexed {expected})")
            self._take_in(partial, path, found.size)
        except (NotDownloaded, BadSample) as error:
            bad = error if isinstance(error, BadSample) else BadSample("missing shard", str(error))
            logger.warning("%s: %s: %s", path.name, bad.kind, bad.detail)
            with contextlib.suppress(OSError):
                failed.write_text(f"{bad.kind}\n{bad.detail}", encoding="utf-8")
            raise bad from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        return found

    def _raise_if_it_failed_lately(self, failed: Path) -> None:
        """Spare every process that needs the shard from waiting for it in vain."""
        try:
            if time.time() - failed.stat().st_mtime > RETRY_AFTER_S:
                return
            kind, _, detail = failed.read_text(encoding="utf-8").partition("\n")
        except OSError:
            return
        raise BadSample(kind, detail)

    def _take_in(self, partial: Path, path: Path, size: int) -> None:
        """Evict the least recently used shards until the new one fits, then give it its name."""
        if size > self.max_bytes:
            raise DataError(
                f"data.cache_max_gb: a shard of {size / 1e9:.3g} GB does not fit into {self.max_bytes / 1e9:g} GB."
            )
        with self._locked(self.folder / "eviction"):
            shards = [(shard.stat(), shard) for shard in self.folder.glob("*/*") if not shard.name.startswith(".")]
            total = sum(status.st_size for status, _ in shards)
            for status, shard in sorted(shards, key=lambda entry: entry[0].st_mtime_ns):
                if total + size <= self.max_bytes:
                    break
                shard.unlink(missing_ok=True)
                total -= status.st_size
            os.replace(partial, path)

    @contextlib.contextmanager
    def _locked(self, path: Path, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a shard, against threads and processes; gives False if it is taken and not waited for."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path.with_name(".lock"), "w")  # noqa: SIM115 (closed below, which releases the lock)
        except OSError as error:
            raise DataError(f"data.cache_dir: {path.parent} cannot be used ({error.strerror}).") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
