"""Measure what a configuration costs on this machine: encoder, adapter, decoder, one training step of a tokenizer, or
the sampling of an autoregressive model with and without a key-value cache.

    python tools/benchmark.py --config configs/quickstart.yaml --batch-size 16
    python tools/benchmark.py --config configs/gpt_c2i_b.yaml --batch-size 8 --set sample.cfg_scale=1.0

Needs neither data nor pretrained weights. docs/performance.md explains the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from common.command import run_command

if TYPE_CHECKING:
    from configs.gpt_c2i import GPTExperiment


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML of this project or of the reference")
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", dest="overrides", help="override a key"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images (default: the configured micro-batch; 8 to sample)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each part (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="T", help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parser.add_argument(
        "--gemm-side", type=int, metavar="N", help="side of the matrices to compare with (default: 4096, or what fits)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parsed = parser.parse_args()
    for name in ("batch_size", "repeats", "threads", "gemm_side"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from configs.gpt_c2i import GPTExperiment
    from configs.schema import load_config, of_kind
    from configs.vfm_vae import VFMVAEExperiment

    loaded = load_config(arguments.config, arguments.overrides)
    if isinstance(loaded.config, GPTExperiment):
        return measure_sampling(arguments, loaded.config)
    config = of_kind(loaded, VFMVAEExperiment)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)

    import torch

    from common.distributed import pick_device
    from trainer.benchmark import as_record, as_table, measure

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    measurements = measure(config, device, arguments.batch_size, arguments.repeats, arguments.gemm_side)
    record = as_record(measurements, config, device)
    print(json.dumps(record) if arguments.json else as_table(record))


def measure_sampling(arguments: argparse.Namespace, config: GPTExperiment) -> None:
    """Print what sampling costs."""
    import torch

    from common.distributed import pick_device
    from evaluation.ar import cost

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, images = pick_device(arguments.device), arguments.batch_size or 8
    record = cost.measure_sampling(config.network, config.sample, device, images, arguments.repeats)
    print(json.dumps(record) if arguments.json else cost.as_table(record))


if __name__ == "__main__":
    run_command(main)
