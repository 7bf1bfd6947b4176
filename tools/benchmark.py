"""Measure what a configuration of any system costs on this machine: its parts, sampling, one training step.

    python tools/benchmark.py --config configs/quickstart.yaml --batch-size 16 --plot quickstart.svg

Needs neither data nor pretrained weights. docs/performance.md explains the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common.command import run_command
from configs.schema import add_config_arguments, load_config


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples (default: the configured micro-batch)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each part (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="T", help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parser.add_argument(
        "--gemm-side", type=int, metavar="N", help="side of the matrices to compare with (default: 4096, or what fits)"
    )
    parser.add_argument(
        "--pipelines",
        action="store_true",
        help="also measure the input of a tokenizer's training, prefetch, reconstruction",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the seconds of all parts as bars")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parsed = parser.parse_args()
    for name in ("batch_size", "repeats", "threads", "gemm_side"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    loaded = load_config(arguments.config, arguments.overrides, presets=arguments.presets)
    config = loaded.config
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)

    import torch

    from common.distributed import pick_device
    from common.files import write_text_atomically
    from trainer.benchmark import as_plot, as_record, as_table, measure

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    measurements = measure(
        config, device, arguments.batch_size, arguments.repeats, arguments.gemm_side, arguments.pipelines
    )
    record = as_record(measurements, config, device)
    if arguments.plot is not None:
        write_text_atomically(arguments.plot, as_plot(record))
    print(json.dumps(record) if arguments.json else as_table(record))


if __name__ == "__main__":
    run_command(main)
