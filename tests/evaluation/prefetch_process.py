"""Prefetches in processes of their own, forked from one warm process. Importing this imports what they need."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import SiglipVisionModel  # noqa: F401  (imported once, in the warm process)

import configs.schema  # noqa: F401
import evaluation.prefetch.lightningdit
import evaluation.prefetch.reg
import evaluation.prefetch.run
import networks.checkpoint  # noqa: F401
from common.command import run_command
from common.files import write_atomically
from tests.forkserver import CONTEXT

torch.set_num_threads(1)  # before anything is computed: threads do not survive a fork

TOOLS = Path(__file__).parents[2] / "tools"

Fault = Callable[[], None]


def run_tool(
    tool: str, arguments: list[str], output: Path, ranks: int = 1, fault: Fault | None = None
) -> tuple[list[int], str]:
    """Run a script below tools/ to its end.

    Args:
        output: file for what it prints.
        ranks: number of processes.
        fault: called in every process before it starts; it breaks something.
    Returns: exit codes of all ranks, negative for a signal, and what they printed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    output.touch()
    processes = []
    for rank in range(ranks):
        environment = {} if ranks == 1 else {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = CONTEXT.Process(target=_main, args=(tool, arguments, environment, output, fault))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(60)
    for process in processes:
        process.kill()  # whoever waits for a rank that is gone
        process.join()
    return [process.exitcode for process in processes], output.read_text(errors="replace")


def _main(tool: str, arguments: list[str], environment: dict[str, str], output: Path, fault: Fault | None) -> None:
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  (for the life of the process)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    sys.argv = [tool, *arguments]
    if fault is not None:
        fault()
    run_command(runpy.run_path(str(TOOLS / tool))["main"])


# --- faults -----------------------------------------------------------------------------------------------------------


def die_in_the_second_shard() -> None:
    """SIGKILL when half of the second shard file has been written."""
    calls = 0

    def write(path: Path, fill: Callable[[Path], None]) -> None:
        nonlocal calls
        calls += 1

        def half(partial: Path) -> None:
            fill(partial)
            os.truncate(partial, partial.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        write_atomically(path, half if calls == 2 else fill)

    evaluation.prefetch.shard_files.write_atomically = write


def die_before_the_second_record() -> None:
    """SIGKILL when the files of the second part are there, and its record is not."""
    write, calls = evaluation.prefetch.run.write_json_atomically, 0

    def write_json(path: Path, *arguments, **options) -> None:
        nonlocal calls
        calls += path.parent.name == "progress"
        if calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, *arguments, **options)

    evaluation.prefetch.run.write_json_atomically = write_json


def die_after(seconds: float) -> None:
    """SIGKILL after a while, wherever that is."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def forbid_large_files() -> None:
    """No file may be larger than 8 kB: the system refuses to write on, as on a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextlib.contextmanager
def full_disk(monkeypatch, module, after: int):
    """In this process: writing a file fails once so many have been written."""
    written = 0

    def write(path, fill):
        nonlocal written
        written += 1
        if written > after:
            raise OSError(28, "No space left on device")
        write_atomically(path, fill)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", write)
        yield
