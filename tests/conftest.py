"""Options and settings of all tests: no network, one thread."""

from __future__ import annotations

import gc
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", default=None, help="folder of golden cases to test instead of tests/golden")


def pytest_configure() -> None:
    """Until all modules are imported: there is no garbage among them, and looking for it takes a second."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the warm process if a test may need it: its imports take seconds, in which the first tests run."""
    gc.freeze()  # what is imported by now stays, and forks of this process share it
    gc.enable()
    if "tests.forkserver" in sys.modules and not session.config.option.collectonly:
        from multiprocessing.forkserver import ensure_running

        ensure_running()


@pytest.fixture(autouse=True)
def one_thread():
    """Every test computes with one thread, so that its numbers do not depend on the machine's cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def signals_end_the_tests():
    """SIGTERM and Ctrl-C end the tests at once, and are no request to a training in their process, past or present."""
    from trainer.signals import StopRequest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "install", lambda request: None)
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory):
    """Folder of a tiny random SigLIP."""
    from tests.tiny import write_encoder

    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny-siglip2-patch8-32")


@pytest.fixture(scope="session")
def tiny_text_encoder(tmp_path_factory: pytest.TempPathFactory):
    """Folder of a tiny random SigLIP with its text model and tokenizer."""
    from tests.tiny import write_encoder_with_text

    return write_encoder_with_text(tmp_path_factory.mktemp("encoder") / "tiny-siglip2-text-patch8-32")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory):
    """Folder of a tiny random CLIP."""
    from tests.tiny import write_clip

    return write_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory):
    """Folder of shards with made-up pictures."""
    from tests.tiny import write_data

    return write_data(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_encoder, tmp_path_factory: pytest.TempPathFactory):
    """Checkpoint folder of a tiny tokenizer for images of 64 pixels."""
    from tests.tiny import write_tokenizer

    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tiny", tiny_encoder)
