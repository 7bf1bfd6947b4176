"""One warm process, from which tests fork theirs: it has imported what they need, so that a start costs no imports.

There is one forkserver for a whole run of tests, so everything that it imports has to be named in one place.
"""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.faults.child", "tests.evaluation.prefetch_process", "torchvision.transforms"])
