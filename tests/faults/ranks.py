"""Gloo ranks that are forks of this process: no import is paid for twice."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist


def run_ranks(count: int, work: Callable[[int], Any], folder: Path, timeout_s: float = 60.0) -> list[Any]:
    """What `work(rank)` returns (JSON values) on every rank of a process group.

    Ranks that are still there after `timeout_s` are killed; that, and an exception on any of them, fails the test.
    """
    ranks = [_start(rank, count, work, folder) for rank in range(count)]
    deadline = time.monotonic() + timeout_s
    codes: dict[int, int] = {}
    while len(codes) < count:
        for rank, process in enumerate(ranks):
            if rank not in codes:
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    results = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(count) if codes[rank] == 0]
    assert codes == dict.fromkeys(range(count), 0), f"{codes}: {results}"
    return results


def _start(rank: int, count: int, work: Callable[[int], Any], folder: Path) -> int:
    """Fork one rank; returns its process id."""
    if process := os.fork():
        return process
    code = 1
    try:
        os.environ.update(GLOO_SOCKET_IFNAME="lo", RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
        (folder / f"rank{rank}.json").write_text(json.dumps(work(rank)))
        if dist.is_initialized():  # the work may have left the group itself
            dist.destroy_process_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
