"""How every command ends: a user's error is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Callable

from common.errors import UserError
from common.memory import keep_freed_memory

# What the disk and its rights say, whatever the program does: full, read-only, a file where a folder is needed.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_DISK_ERRORS |= {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code (None: 0).

    A `UserError`, and what a disk refuses, is printed as `error: ...` and ends with code 2, Ctrl-C with code 130.
    """
    keep_freed_memory()
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    finally:
        gc.freeze()  # what is left lives to the very end: to look through it for garbage once more takes torch a second
    sys.exit(code)
