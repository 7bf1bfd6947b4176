"""One warm process, from which tests fork theirs: it has imported what they need, so that a start costs no imports.

There is one forkserver for a whole run of tests. All that it imports is named in one place, `warm_process.py`.
"""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.warm_process"])
