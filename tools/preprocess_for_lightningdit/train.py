"""Train LightningDiT: `train.py` with configs/lightningdit_xl1_stage_0.yaml, unless --config names another file."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "lightningdit_xl1_stage_0.yaml"

if __name__ == "__main__":
    if not any(argument == "--config" or argument.startswith("--config=") for argument in sys.argv):
        sys.argv += ["--config", str(CONFIG)]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
