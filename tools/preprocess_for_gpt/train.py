"""Train an autoregressive model: `train.py` with configs/gpt_c2i_b.yaml, unless --config names another file."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "gpt_c2i_b.yaml"

if __name__ == "__main__":
    if not any(argument == "--config" or argument.startswith("--config=") for argument in sys.argv):
        sys.argv += ["--config", str(CONFIG)]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
