"""One writer per folder, also after kills."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.lock import locked

HOLD = """
import os, sys, time
from common.lock import locked
with locked(sys.argv[1]):
    if os.fork() == 0:
        time.sleep(60)  # as a data loader that outlives its parent
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_folder_is_refused_and_free_after_a_kill_although_a_child_lives_on(tmp_path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        refused = pytest.raises(UserError, match=rf"another process writes here \(process {holder.pid} on ")
        with refused, locked(tmp_path):
            pass
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        holder.kill()
        holder.wait()
        try:
            assert Path(f"/proc/{children[0]}").exists()
            with locked(tmp_path):
                pass
        finally:
            subprocess.run(["kill", *children], check=True)


def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, caplog) -> None:
    def refuse(*arguments) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked(tmp_path / "run"):
        pass
    assert "cannot be locked ([Errno 37] No locks available); make sure that no other run writes" in caplog.text


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot be written"), locked(tmp_path / "file" / "run"):
        pass
