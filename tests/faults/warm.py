"""Training processes forked from one warm process, so that a start costs no imports."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.child import train
from tests.forkserver import CONTEXT


class Run:
    """The processes of one launch of `train.py`, one per rank.

    Args:
        config: the YAML.
        ranks: number of processes.
        overrides: `section.key=value`.
        fault: called in every process before it trains; it may look at RANK.
    """

    def __init__(
        self, config: Path, ranks: int = 1, overrides: list[str] = (), fault: Callable[[], None] | None = None
    ):
        stem = f"{config.stem}-{time.monotonic_ns()}"
        self.outputs = [config.with_name(f"{stem}-rank{r}.txt") for r in range(ranks)]
        arguments = ["--config", str(config), *(f"--set={override}" for override in overrides)]
        common = (
            {} if ranks == 1 else {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        )
        self.processes = []
        for r, output in enumerate(self.outputs):
            output.touch()
            environment = {**common, "RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {}
            process = CONTEXT.Process(target=train, args=(arguments, environment, output, fault))
            process.start()
            self.processes.append(process)

    def wait_for(self, pattern: str, rank: int = 0, timeout: float = 60) -> None:
        """Wait until a rank has written something; fails if it ends or takes too long."""
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.text(rank)):
            assert self.processes[rank].is_alive(), f"ended without {pattern!r}:\n{self.text(rank)}"
            assert time.monotonic() < deadline, f"no {pattern!r} within {timeout} s:\n{self.text(rank)}"
            time.sleep(0.01)

    def wait(self, timeout: float = 120) -> list[int]:
        """Exit codes of all ranks, negative for a signal. One that takes too long is killed, and a failure."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        hanging = [r for r, process in enumerate(self.processes) if process.is_alive()]
        self.kill()
        assert not hanging, f"ranks {hanging} did not end within {timeout} s:\n{self.text(hanging[0])}"
        return [process.exitcode for process in self.processes]

    def signal(self, number: int, rank: int = 0) -> None:
        """Send a signal to one rank."""
        os.kill(self.processes[rank].pid, number)

    def kill(self) -> None:
        """SIGKILL whatever still runs."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def text(self, rank: int = 0) -> str:
        """What a rank has written so far."""
        return self.outputs[rank].read_text(errors="replace")


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
