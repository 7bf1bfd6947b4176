"""The best checkpoint of a run by a validation metric.

Which one it is stands in the training state of every checkpoint, so the newest checkpoint always knows; the link
`run_dir/best` only shows it, and is set again at every resume. Rotation leaves the best checkpoint alone.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.checkpoint_folder import checkpoint_path

HIGHER_IS_BETTER = ("psnr", "ssim")
LINK = "best"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """What the best validation of a run found.

    Args:
        nimg: images seen then; the checkpoint of that moment holds the weights.
        metric: what it was chosen by.
        value: of this metric.
        measured_on: fingerprint of images, protocol and metrics; only values of equal ones compare.
    """

    nimg: int
    metric: str
    value: float
    measured_on: str

    def beats(self, other: Best | None) -> bool:
        """Whether this one is better than another; anything that compares with nothing is."""
        if not math.isfinite(self.value):
            return False
        if other is None or (self.metric, self.measured_on) != (other.metric, other.measured_on):
            return True
        return self.value > other.value if self.metric in HIGHER_IS_BETTER else self.value < other.value

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> Best | None:
        """The inverse of `to_json`; None for None."""
        return None if values is None else cls(**values)


def show_best(run_dir: Path, best: Best | None) -> None:
    """Let `run_dir/best` point to the best checkpoint, or to nothing.

    A file system without links, or a folder of that name, is told in the log; the checkpoint is kept all the same.
    """
    link = run_dir / LINK
    try:
        if best is None:
            if link.is_symlink():
                link.unlink()
            return
        target = os.path.relpath(checkpoint_path(run_dir, best.nimg), run_dir)
        if link.is_symlink() and os.readlink(link) == target:
            return
        partial = link.with_name(f".{LINK}.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        os.replace(partial, link)
    except OSError as error:
        log.warning("%s could not be set (%s); the best checkpoint is %s.", link, error, best)
