"""Fetching a file from far away: once whole, or not at all.

http and https are read here; `pipe:` runs the user's command and reads its output; any other scheme (`s3://`,
`gs://`, `hf://` ...) goes to the library that fsspec knows for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import select
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from data.locations import PIPE

_BLOCK = 1 << 20
_LEAST_BYTES_PER_SECOND = 1024
_LONGEST_PAUSE_S = 30.0
_TRANSIENT_STATUS = (408, 425, 429)


@dataclass(frozen=True)
class DownloadLimits:
    """How patient a download is.

    Args:
        attempts: tries before a file counts as missing; the pauses between them are 1, 2, 4 ... up to 30 seconds.
        timeout_s: seconds without an answer, or at less than 1 KiB per second, after which a try has failed.
    """

    attempts: int = 6
    timeout_s: float = 30.0


@dataclass(frozen=True)
class Downloaded:
    """What arrived: its size in bytes and its SHA-256."""

    size: int
    sha256: str


class NotDownloaded(Exception):
    """A file that cannot be had.

    Args:
        permanent: the other side answered that there is no such file (or that it is not for us).
    """

    def __init__(self, message: str, permanent: bool = False):
        super().__init__(message)
        self.permanent = permanent


def download(url: str, target: Path, limits: DownloadLimits) -> Downloaded:
    """Write what is at `url` to the file `target`, whose content is not whole until this returns.

    Raises: NotDownloaded when all attempts have failed; DataError if `target` cannot be written, or a library for
        this kind of URL is not installed.
    """
    for attempt in range(limits.attempts):
        if attempt:
            time.sleep(min(2.0 ** (attempt - 1), _LONGEST_PAUSE_S))
        try:
            return _copy(url, target, limits)
        except NotDownloaded as error:
            if error.permanent or attempt + 1 == limits.attempts:
                raise
    raise AssertionError("no attempt was made")


def _copy(url: str, target: Path, limits: DownloadLimits) -> Downloaded:
    """One attempt."""
    digest, size = hashlib.sha256(), 0
    with _writing(target) as write, _reading(url, limits.timeout_s) as (read, expected):
        pace = _Pace(limits.timeout_s)
        while block := read():
            write(block)
            digest.update(block)
            size += len(block)
            pace.check(size)
    if expected is not None and size != expected:
        raise NotDownloaded(f"{size:,} of {expected:,} bytes arrived")
    return Downloaded(size, digest.hexdigest())


class _Pace:
    """Ends a download that crawls: a time-out alone would wait for ever on a byte now and then."""

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._since, self._size = time.monotonic(), 0

    def check(self, size: int) -> None:
        elapsed = time.monotonic() - self._since
        if elapsed < self._timeout_s:
            return
        if size - self._size < _LEAST_BYTES_PER_SECOND * elapsed:
            raise NotDownloaded(f"only {size - self._size:,} bytes arrived in {elapsed:.0f} s")
        self._since, self._size = time.monotonic(), size


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[Callable[[bytes], object]]:
    """The function that appends to `target`; its errors are the user's disk, not the network's."""

    def refuse(error: OSError) -> DataError:
        return DataError(
            f"data.cache_dir: {target} cannot be written ({error.strerror}). Make room, lower data.cache_max_gb, or "
            "choose another folder."
        )

    try:
        file = open(target, "wb")  # noqa: SIM115 (closed below; errors while reading must not pass for its own)
    except OSError as error:
        raise refuse(error) from error

    def write(block: bytes) -> None:
        try:
            file.write(block)
        except OSError as error:
            raise refuse(error) from error

    try:
        yield write
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        raise
    try:
        file.close()
    except OSError as error:
        raise refuse(error) from error


@contextlib.contextmanager
def _reading(url: str, timeout_s: float) -> Iterator[tuple[Callable[[], bytes], int | None]]:
    """(a function that gives the next bytes, the size of the whole where the other side tells it).

    Raises: NotDownloaded for whatever goes wrong on the way.
    """
    scheme = PIPE if url.startswith(PIPE) else url.partition("://")[0]
    opener = {PIPE: _open_pipe, "http": _open_http, "https": _open_http}.get(scheme, _open_fsspec)
    try:
        with opener(url, timeout_s) as source:
            yield source
    except urllib.error.HTTPError as error:
        gone = 400 <= error.code < 500 and error.code not in _TRANSIENT_STATUS
        raise NotDownloaded(f"{url}: HTTP {error.code} {error.reason}", permanent=gone) from error
    except (FileNotFoundError, PermissionError) as error:
        raise NotDownloaded(f"{url}: {error}", permanent=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise NotDownloaded(f"{url}: {error or type(error).__name__}") from error


@contextlib.contextmanager
def _open_http(url: str, timeout_s: float) -> Iterator[tuple[Callable[[], bytes], int | None]]:
    request = urllib.request.Request(url, headers={"User-Agent": "vfm-vae", "Accept-Encoding": "identity"})
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        size = response.headers.get("Content-Length")
        yield lambda: response.read1(_BLOCK), None if size is None else int(size)


@contextlib.contextmanager
def _open_pipe(url: str, timeout_s: float) -> Iterator[tuple[Callable[[], bytes], int | None]]:
    """The output of a shell command; it has failed if its exit code is not 0, or it is silent for too long."""
    command = url.removeprefix(PIPE)
    process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)
    assert process.stdout is not None
    output = process.stdout.fileno()

    def read() -> bytes:
        if not select.select([output], [], [], timeout_s)[0]:
            raise TimeoutError(f"no output in {timeout_s:g} s")
        return os.read(output, _BLOCK)

    try:
        yield read, None
        if code := process.wait(timeout_s):
            raise NotDownloaded(f"{command}: exit code {code}")
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"did not end within {timeout_s:g} s after its output") from error
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


@contextlib.contextmanager
def _open_fsspec(url: str, timeout_s: float) -> Iterator[tuple[Callable[[], bytes], int | None]]:
    """A file of a cloud store. How long it waits is up to the store's own library."""
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"data.path: {url}: {error}") from error
    try:
        with files.open(path, "rb", cache_type="none") as source:
            yield lambda: source.read(_BLOCK), files.size(path)
    except (OSError, NotDownloaded, DataError):
        raise
    except Exception as error:  # every store's library has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
