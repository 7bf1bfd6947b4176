"""The script that CI runs, with stand-ins for the environment and its programs that write down their calls."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "run_tests.sh"
SET_UP = '#!/bin/sh\necho "setup $*" >>calls\necho progress\necho "$PWD/environment/python"\n'
PROGRAM = '#!/bin/sh\necho "${0##*/} $*" >>calls\ncase "$*" in *"$FAILS"*) exit 3 ;; esac\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "a checkout"
    for name, content in (
        ("tools/setup_env.sh", SET_UP),
        ("environment/python", PROGRAM),
        ("environment/lint-imports", PROGRAM),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    shutil.copy2(SCRIPT, root)
    return root


def run(checkout: Path, *arguments: str, fails: str = "nothing") -> tuple[int, list[str]]:
    """Exit code and calls."""
    script = str(checkout / "run_tests.sh")
    result = subprocess.run([script, *arguments], cwd="/", env={"PATH": "/usr/bin:/bin", "FAILS": fails}, timeout=20)
    return result.returncode, (checkout / "calls").read_text().splitlines()


def test_all_parts_run_in_order_without_the_slow_tests(checkout):
    assert run(checkout) == (
        0,
        [
            "setup --dev",
            "python -m ruff format --check .",
            "python -m ruff check .",
            "lint-imports --no-cache --no-logo",
            "python -m pytest -m not slow",
        ],
    )


def test_slow_lifts_the_selection_and_other_arguments_reach_pytest(checkout):
    _, calls = run(checkout, "tests/data", "--slow", "-k", "order or keys")
    assert calls[-1] == "python -m pytest tests/data -k order or keys"


@pytest.mark.parametrize("part", ["ruff format", "ruff check", "--no-cache", "pytest"])
def test_first_failure_ends_it_with_its_exit_code(checkout, part):
    code, calls = run(checkout, fails=part)
    assert code == 3
    assert part in calls[-1]
