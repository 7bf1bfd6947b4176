"""How every command ends: a user's error is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from common.errors import UserError


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code (None: 0).

    A `UserError` is printed as `error: ...` and ends with code 2, Ctrl-C with code 130.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
