"""The set-up script, with a stand-in for the interpreter whose `venv` and `pip` only write down their calls."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "setup_env.sh"

# What `-c` asks is answered by the real interpreter; the environment variables of the tests bend the rest.
STAND_IN = f"""#!/usr/bin/env bash
case "$*" in
    *version_info*) exit "${{TOO_OLD:-0}}" ;;
    "-c import ensurepip") exit "${{NO_ENSUREPIP:-0}}" ;;
    "-m pip --version") exit "${{NO_PIP:-0}}" ;;
    "-c "*) exec '{sys.executable}' "$@" ;;
    --version) echo "Python 3.9.1" ;;
    "-m venv "*) mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python" && echo venv >>"$CALLS" ;;
    "-m pip "*)
        echo "pip ${{*: -2}}" >>"$CALLS"
        echo "Downloading something (1 GB)"
        if [[ -n "${{HANG:-}}" ]]; then touch "$CALLS.hangs"; sleep 30; fi
        if [[ -n "${{SLOW:-}}" ]]; then sleep "$SLOW"; fi
        exit "${{PIP_FAILS:-0}}"
        ;;
esac
"""


class Checkout:
    """A checkout that holds only what the script reads, in a folder with a blank in its name."""

    def __init__(self, folder: Path):
        self.root = folder / "a checkout"
        (self.root / "tools").mkdir(parents=True)
        shutil.copy2(SCRIPT, self.root / "tools")
        for name in ("pyproject.toml", "requirements.txt", "requirements-dev.txt"):
            (self.root / name).write_text(name)
        self.interpreter = folder / "stand-in python"
        self.interpreter.write_text(STAND_IN)
        self.interpreter.chmod(0o755)
        self.calls_file = folder / "calls"
        self.calls_file.touch()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [str(self.root / "tools" / "setup_env.sh"), *arguments],
            env={**os.environ, "PYTHON": str(self.interpreter), "CALLS": str(self.calls_file), **environment},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **environment)
        stdout, stderr = process.communicate(timeout=20)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def calls(self) -> list[str]:
        """What the stand-in did since the last call of this method."""
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.write_text("")
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_first_call_installs_and_prints_the_interpreter_alone_on_stdout(checkout):
    result = checkout.run()
    assert (result.returncode, result.stdout) == (0, f"{checkout.root}/.venv/bin/python\n")
    assert checkout.calls() == ["venv", "pip -r requirements.txt"]
    assert "Downloading something (1 GB)" in result.stderr


def test_second_call_does_nothing(checkout):
    checkout.run()
    checkout.calls()
    result = checkout.run()
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{checkout.root}/.venv/bin/python\n", "")
    assert checkout.calls() == []


def test_dev_after_plain_installs_the_rest_and_plain_after_dev_nothing(checkout):
    checkout.run()
    checkout.calls()
    assert checkout.run("--dev").returncode == 0
    assert checkout.calls() == ["pip -r requirements-dev.txt"]
    assert checkout.run().returncode == 0
    assert checkout.calls() == []


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "pyproject.toml"])
def test_changed_file_installs_again_into_the_same_environment(checkout, name):
    checkout.run("--dev")
    checkout.calls()
    (checkout.root / name).write_text("changed")
    checkout.run("--dev")
    assert checkout.calls() == ["pip -r requirements-dev.txt"]


def test_killed_install_is_not_taken_for_a_good_one(checkout):
    process = checkout.start(HANG="1")
    deadline = time.monotonic() + 20
    while not Path(f"{checkout.calls_file}.hangs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    checkout.calls()
    result = checkout.run()
    assert "the last install was interrupted; starting again" in result.stderr
    assert checkout.calls() == ["venv", "pip -r requirements.txt"]
    assert checkout.run().returncode == 0
    assert checkout.calls() == []


def test_failed_install_is_an_error_and_is_not_taken_for_a_good_one(checkout):
    result = checkout.run(PIP_FAILS="1")
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: pip could not install the requirements" in result.stderr
    checkout.calls()
    checkout.run()
    assert checkout.calls() == ["venv", "pip -r requirements.txt"]


def test_environment_made_by_hand_is_kept(checkout):
    (checkout.root / ".venv" / "bin").mkdir(parents=True)
    shutil.copy2(checkout.interpreter, checkout.root / ".venv" / "bin" / "python")
    assert checkout.run().returncode == 0
    assert checkout.calls() == ["pip -r requirements.txt"]


def test_moved_checkout_gets_a_new_environment(checkout):
    checkout.run()
    checkout.calls()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.run().stdout == f"{checkout.root}/.venv/bin/python\n"
    assert checkout.calls() == ["venv", "pip -r requirements.txt"]


@pytest.mark.skipif(shutil.which("flock") is None, reason="the script locks only where there is flock")
def test_of_two_calls_at_once_one_installs_and_both_succeed(checkout):
    processes = [checkout.start(SLOW="0.5") for _ in range(2)]
    outputs = [process.communicate(timeout=20) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [stdout for stdout, _ in outputs] == [f"{checkout.root}/.venv/bin/python\n"] * 2
    assert checkout.calls() == ["venv", "pip -r requirements.txt"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TOO_OLD": "1"}, "is Python 3.9.1, expected Python 3.11 or newer."),
        ({"PYTHON": "/no/such/python"}, "error: PYTHON=/no/such/python is not a command"),
        ({"NO_ENSUREPIP": "1", "NO_PIP": "1"}, "has neither ensurepip nor pip. On Debian and Ubuntu: apt-get install"),
    ],
)
def test_unusable_interpreter_is_refused_in_words(checkout, environment, message):
    result = checkout.run(**environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert not any(call.startswith("pip -r") for call in checkout.calls())


def test_base_without_ensurepip_lends_its_own_pip(checkout):
    assert checkout.run(NO_ENSUREPIP="1").returncode == 0
    assert checkout.calls() == ["venv", "pip --quiet pip", "pip -r requirements.txt"]


def test_unknown_flag_is_refused(checkout):
    result = checkout.run("--devel")
    assert (result.returncode, result.stderr) == (2, "error: found '--devel'. usage: tools/setup_env.sh [--dev]\n")
