"""What the processes of the fault tests run. Importing it imports everything that a training needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed.run
from transformers import SiglipVisionModel  # noqa: F401  (imported once, in the warm process)

import trainer.launch
import trainer.systems.vfm_vae  # noqa: F401
from common.command import run_command

torch.set_num_threads(1)  # before anything is computed: threads do not survive a fork


def train(arguments: list[str], environment: Mapping[str, str], output: Path, fault: Callable[[], None] | None) -> None:
    """`train.py` with its output in a file.

    Args:
        fault: called first; it breaks something.
    """
    _write_into(output)
    os.environ.update(environment)
    sys.argv = ["train.py", *arguments]
    if fault is not None:
        fault()
    from train import main

    run_command(main)


def torchrun(arguments: list[str], environment: Mapping[str, str], output: Path) -> None:
    """`torchrun`, its output and that of the processes which it starts in a file. These import all that they need."""
    _write_into(output)
    os.environ.update(environment)
    torch.distributed.run.main(arguments)


def _write_into(output: Path) -> None:
    """Let this process and its children write into a file."""
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  (for the life of the process)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
