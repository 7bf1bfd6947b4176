"""Options and settings of all tests: no network, one thread."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", default=None, help="folder of golden cases to test instead of tests/golden")


@pytest.fixture(autouse=True)
def one_thread():
    """Every test computes with one thread, so that its numbers do not depend on the machine's cores."""
    import torch

    torch.set_num_threads(1)
