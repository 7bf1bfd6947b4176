"""One writer per folder."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError

LOCK_FILE = ".lock"

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder, which is made if need be, for this process; it is free again when the process ends, however.

    It is a record lock, which forked processes do not inherit: a data loader that outlives a killed training does not
    keep the next one out. Where the file system knows no locks, a warning says so.

    Raises: UserError if another process holds the folder, or it cannot be written.
    """
    path = Path(folder) / LOCK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); choose another folder, or mend this one.") from error
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        raise UserError(
            f"{path.parent}: another process writes here ({holder or 'unknown'}); wait until it ends or stop it, or "
            "choose another folder."
        ) from error
    except OSError as error:
        log.warning("%s cannot be locked (%s); make sure that no other run writes to this folder.", path, error)
        return
    with contextlib.suppress(OSError):  # only a note for the message above
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
