import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "quickstart.sh"


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the script, and an interpreter that only writes down what it is asked to run."""
    root = tmp_path / "a checkout"
    (root / "tools").mkdir(parents=True)
    shutil.copy(SCRIPT, root)
    interpreter = root / "interpreter"
    interpreter.write_text('#!/bin/sh\necho "$@" >>calls.txt\ncase "$*" in *"$FAIL_ON"*) exit 5;; esac\n')
    set_up = root / "tools" / "setup_env.sh"
    set_up.write_text(f"#!/bin/sh\necho installing\necho '{interpreter}'\n")
    for file in (interpreter, set_up):
        file.chmod(0o755)
    return root


def run(root, *arguments, fail_on="nothing fails"):
    command = ["bash", str(root / "quickstart.sh"), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "FAIL_ON": fail_on}
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)


def calls(root):
    return (root / "calls.txt").read_text().splitlines()


def test_the_steps_run_in_order_from_any_folder(checkout):
    assert run(checkout).returncode == 0
    photographs, training, reconstruct, evaluate, report = calls(checkout)
    assert photographs == (
        "tools/quickstart/photographs.py --output-dir runs/quickstart-data --held-out chelsea,flower --stored-size 128"
    )
    assert training.startswith("-m torch.distributed.run --standalone --nproc_per_node=1 train.py")
    assert training.endswith(
        "--config configs/quickstart.yaml --set run.run_dir=runs/quickstart --set run.random_seed=0 "
        "--set data.path=runs/quickstart-data/shards"
    )
    assert reconstruct == (
        "tools/reconstruct/reconstruct.py --input-dir runs/quickstart-data/heldout "
        "--output-dir runs/quickstart/reconstructions --vae-pth runs/quickstart"
    )
    assert evaluate.startswith("tools/reconstruct/evaluate.py --ref-dir runs/quickstart/reconstructions/inputs")
    assert report.startswith("tools/quickstart/report.py --run-dir runs/quickstart ")


def test_another_seed_or_split_gets_folders_of_its_own(checkout):
    run(checkout, "--seed", "3", "--held-out", "coffee,rocket", "--", "--set", "training.total_kimg=1")
    photographs, training, *_ = calls(checkout)
    assert "--output-dir runs/quickstart-data-coffee-rocket --held-out coffee,rocket" in photographs
    assert "run.run_dir=runs/quickstart-coffee-rocket-seed3 --set run.random_seed=3" in training
    assert training.endswith("data.path=runs/quickstart-data-coffee-rocket/shards --set training.total_kimg=1")


def test_a_failing_step_ends_the_script_with_its_exit_code(checkout):
    assert run(checkout, fail_on="train.py").returncode == 5
    assert len(calls(checkout)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sed", "3"), "error: found '--sed', expected --seed N"),
        (("--seed",), "error: --seed needs a value."),
        (("--seed", "x"), "error: --seed: found 'x', expected a whole number."),
        (("--held-out", "../x"), "error: --held-out: found '../x', expected names such as coffee,rocket."),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(arguments, message, checkout):
    result = run(checkout, *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert not (checkout / "calls.txt").exists()


def test_help_shows_the_usage_and_nothing_of_the_code(checkout):
    text = run(checkout, "--help").stdout
    assert "./quickstart.sh [--seed N] [--held-out NAME,NAME]" in text and "set -euo" not in text
