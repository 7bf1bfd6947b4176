"""Logging back-ends: what they are given, and that none of them can stop a training."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from tests.trainer.conftest import build_trainer, run_until
from trainer.backends import Backends, open_backends
from trainer.config import LoggingConfig
from trainer.metrics import read_log


class FakeWriter:
    """In place of `torch.utils.tensorboard.SummaryWriter`: remembers what it is given."""

    opened: ClassVar[list[FakeWriter]] = []

    def __init__(self, log_dir: str, purge_step: int | None):
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars: dict[tuple[str, int], float] = {}
        self.pictures: dict[tuple[str, int], tuple[int, ...]] = {}
        self.closed = False
        self.opened.append(self)

    def add_scalar(self, name: str, value: float, global_step: int) -> None:
        self.scalars[name, global_step] = value

    def add_image(self, name: str, pixels: np.ndarray, global_step: int, dataformats: str) -> None:
        assert dataformats == "HWC" and pixels.dtype == np.uint8
        self.pictures[name, global_step] = pixels.shape

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch) -> list[FakeWriter]:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(FakeWriter, "opened", [])
    return FakeWriter.opened


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "grid.png"
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(path)
    return path


def told(caplog) -> list[str]:
    """What the back-ends logged."""
    return [record.message for record in caplog.records if record.name == "trainer.backends"]


def test_tensorboard_gets_every_number_of_the_log_and_the_grids(make_config, writers, tmp_path) -> None:
    changes = {"logging.tensorboard": True, "logging.image_snapshot_ticks": 2}
    run_until(build_trainer(make_config(changes=changes)), 2)
    run_until(build_trainer(make_config(changes=changes)))
    lines = read_log(tmp_path / "run" / "log.jsonl")
    logged = {(name, line["progress/nimg"]): value for line in lines for name, value in line.items()}
    assert writers[0].scalars | writers[1].scalars == logged
    assert [writer.purge_step for writer in writers] == [None, 9]
    assert writers[0].log_dir == str(tmp_path / "run" / "tensorboard")
    assert list(writers[1].pictures) == [("images/reconstructions", 20), ("images/reconstructions", 24)]
    assert all(writer.closed for writer in writers)


def test_a_missing_tensorboard_costs_one_line(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    backends = open_backends(LoggingConfig(tensorboard=True), tmp_path, {}, -1)
    backends.write({"progress/nimg": 4})
    backends.close()
    (message,) = told(caplog)
    assert message.startswith("tensorboard could not start (")
    assert message.endswith("; the run goes on without it.")


def test_wandb_logs_offline_and_keeps_the_id_of_its_run(tmp_path, picture, caplog) -> None:
    config = LoggingConfig(wandb_project_name="project", wandb_mode="offline")
    ids = []
    for nimg in (4, 8):
        backends = open_backends(config, tmp_path, {"run": {"random_seed": 1}}, -1)
        backends.images("validation", picture, nimg)
        backends.write({"progress/nimg": nimg, "loss/total": 1.0})
        backends.close()
        ids.append((tmp_path / "wandb_run_id.txt").read_text())
        time.sleep(1 - time.time() % 1)  # sessions that begin within one second share a folder
    assert ids[0] == ids[1]
    assert (
        len(list((tmp_path / "wandb").glob(f"offline-run-*-{ids[0]}/files/media/images/images/validation_*.png"))) == 2
    )
    assert told(caplog) == []


def test_a_wandb_that_cannot_start_never_stops_a_training(tmp_path, monkeypatch, caplog) -> None:
    import wandb

    def fail(*arguments, **options):
        raise RuntimeError("no network")

    monkeypatch.setattr(wandb, "init", fail)
    backends = open_backends(LoggingConfig(wandb_project_name="project"), tmp_path, {}, -1)
    backends.write({"progress/nimg": 4})
    backends.close()
    assert "wandb could not start (no network); the run goes on without it." in caplog.text


@pytest.mark.parametrize("options", [{}, {"wandb_project_name": "project", "wandb_mode": "disabled"}])
def test_a_backend_that_is_not_wanted_is_not_imported(tmp_path, monkeypatch, caplog, options) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    open_backends(LoggingConfig(**options), tmp_path, {}, -1).write({"progress/nimg": 4})
    assert told(caplog) == []


class Failing:
    """A back-end that fails in one of its calls."""

    def __init__(self, name: str, call: str | None = None):
        self.name, self.calls, self._fails_in = name, [], call

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if call == self._fails_in:
            raise ConnectionError("gone")

    def write(self, line) -> None:
        self._called("write")

    def images(self, name, path, nimg) -> None:
        self._called("images")

    def close(self) -> None:
        self._called("close")


@pytest.mark.parametrize(("call", "calls"), [("write", 1), ("images", 2), ("close", 5)])
def test_a_backend_that_fails_is_named_once_and_dropped_and_the_others_go_on(caplog, picture, call, calls) -> None:
    failing, sound = Failing("failing", call), Failing("sound")
    backends = Backends({"failing": lambda: failing, "sound": lambda: sound})
    for nimg in (4, 8):
        backends.write({"progress/nimg": nimg})
        backends.images("validation", picture, nimg)
    backends.close()
    assert told(caplog) == ["failing failed (gone); the run goes on without it."]
    assert len(failing.calls) == calls
    assert sound.calls == ["write", "images", "write", "images", "close"]
