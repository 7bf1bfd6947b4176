"""Optional logging back-ends. They can never stop a training."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from trainer.config import LoggingConfig

log = logging.getLogger(__name__)


class Backend(Protocol):
    """Where log lines and pictures go besides the run folder. It may raise whatever it likes."""

    name: str

    def write(self, line: Mapping[str, Any]) -> None:
        """Take over a log line, at its `progress/nimg`."""
        ...

    def images(self, name: str, path: Path, nimg: int) -> None:
        """Take over a PNG file that was written after `nimg` images."""
        ...

    def close(self) -> None:
        """Finish; nothing comes after it."""
        ...


class WandbBackend:
    """Weights & Biases.

    Args:
        config: names project, run and mode.
        run_dir: holds its files and the run's id, so that a resumed run goes on in the same place.
        settings: the resolved configuration.
    """

    name = "wandb"

    def __init__(self, config: LoggingConfig, run_dir: Path, settings: Mapping[str, Any]):
        import wandb

        id_file = run_dir / "wandb_run_id.txt"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12], encoding="ascii")
        self._image = wandb.Image
        self._run = wandb.init(
            project=config.wandb_project_name,
            name=config.wandb_run_name,
            mode=config.wandb_mode,
            dir=str(run_dir),
            id=id_file.read_text(encoding="ascii").strip(),
            resume="allow",
            config=dict(settings),
        )

    def write(self, line: Mapping[str, Any]) -> None:
        self._run.log(dict(line), step=int(line["progress/nimg"]))

    def images(self, name: str, path: Path, nimg: int) -> None:
        self._run.log({f"images/{name}": self._image(str(path))}, step=nimg)

    def close(self) -> None:
        self._run.finish()


class TensorBoardBackend:
    """TensorBoard events in `run_dir/tensorboard`; the horizontal axis is the number of images.

    Args:
        run_dir: folder of the run.
        resumed_nimg: images seen at the checkpoint that the run goes on from, or -1; what an earlier session wrote
            after that will be written again, so TensorBoard is told to drop it.
    """

    name = "tensorboard"

    def __init__(self, run_dir: Path, resumed_nimg: int):
        from torch.utils.tensorboard import SummaryWriter

        purge_step = resumed_nimg + 1 if resumed_nimg >= 0 else None
        self._writer = SummaryWriter(log_dir=str(run_dir / "tensorboard"), purge_step=purge_step)

    def write(self, line: Mapping[str, Any]) -> None:
        nimg = int(line["progress/nimg"])
        for name, value in line.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                self._writer.add_scalar(name, value, global_step=nimg)
        self._writer.flush()

    def images(self, name: str, path: Path, nimg: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(f"images/{name}", np.asarray(image), global_step=nimg, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Backends:
    """All back-ends of a run. One that fails is named in the log once, and left out from then on.

    Args:
        openers: what opens each, by name.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Backend]]):
        self._open: list[Backend] = []
        for name, opener in openers.items():
            try:
                self._open.append(opener())
            except Exception as error:  # whatever it is, the training is worth more
                log.warning("%s could not start (%s); the run goes on without it.", name, error)

    def write(self, line: Mapping[str, Any]) -> None:
        """Pass a log line on."""
        self._pass_on(lambda backend: backend.write(line))

    def images(self, name: str, path: Path, nimg: int) -> None:
        """Pass a PNG file on."""
        self._pass_on(lambda backend: backend.images(name, path, nimg))

    def close(self) -> None:
        """Finish them all."""
        self._pass_on(lambda backend: backend.close())
        self._open.clear()

    def _pass_on(self, call: Callable[[Backend], None]) -> None:
        for backend in list(self._open):
            try:
                call(backend)
            except Exception as error:
                log.warning("%s failed (%s); the run goes on without it.", backend.name, error)
                self._open.remove(backend)


def open_backends(config: LoggingConfig, run_dir: Path, settings: Mapping[str, Any], resumed_nimg: int) -> Backends:
    """The back-ends that a configuration asks for; called on one rank.

    Args:
        settings: the resolved configuration.
        resumed_nimg: images seen at the checkpoint that the run goes on from, or -1.
    """
    openers: dict[str, Callable[[], Backend]] = {}
    if config.wandb_project_name is not None and config.wandb_mode != "disabled":
        openers["wandb"] = lambda: WandbBackend(config, run_dir, settings)
    if config.tensorboard:
        openers["tensorboard"] = lambda: TensorBoardBackend(run_dir, resumed_nimg)
    return Backends(openers)
