"""Optional logging back-ends. They can never stop a training."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config import LoggingConfig

log = logging.getLogger(__name__)


class WandbBackend:
    """Weights & Biases, on rank 0. Its first failure is logged, and from then on it stays silent.

    Args:
        config: it is off unless a project is named and the mode is not `disabled`.
        run_dir: holds its files and the run's id, so that a resumed run goes on in the same place.
        settings: the resolved configuration.
        active: False on the other ranks.
    """

    def __init__(self, config: LoggingConfig, run_dir: Path, settings: Mapping[str, Any], active: bool):
        self._run = None
        if not active or config.wandb_project_name is None or config.wandb_mode == "disabled":
            return
        try:
            import wandb

            id_file = run_dir / "wandb_run_id.txt"
            if not id_file.exists():
                id_file.write_text(uuid.uuid4().hex[:12], encoding="ascii")
            self._run = wandb.init(
                project=config.wandb_project_name,
                name=config.wandb_run_name,
                mode=config.wandb_mode,
                dir=str(run_dir),
                id=id_file.read_text(encoding="ascii").strip(),
                resume="allow",
                config=dict(settings),
            )
        except Exception as error:  # whatever it is, the training is worth more
            log.warning("wandb could not start (%s); the run goes on without it.", error)

    def write(self, line: Mapping[str, Any]) -> None:
        """Log one line at its number of images."""
        if self._run is None:
            return
        try:
            self._run.log(dict(line), step=int(line["progress/nimg"]))
        except Exception as error:
            log.warning("wandb failed (%s); the run goes on without it.", error)
            self._run = None

    def close(self) -> None:
        """Finish the run there."""
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                log.warning("wandb failed to finish (%s).", error)
