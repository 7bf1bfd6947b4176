"""The command line that the tools share which sample networks. Importing it costs no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from evaluation.sampling.folder import SampleMaker


def sampling_parser(description: str | None, labels: str) -> argparse.ArgumentParser:
    """A parser with what every such tool takes.

    Args:
        labels: the default of `--labels`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder, run folder or file of the reference")
    parser.add_argument("--output-dir", required=True, help="empty, or what an interrupted run has left")
    parser.add_argument(
        "--config", "--use-config", help="YAML of the run; may be left out for a folder, which carries it"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="sample.key=value",
        dest="overrides",
        help="override a key, e.g. sample.cfg_scale=4.0",
    )
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights (default: ema)")
    parser.add_argument("--num-samples", type=int, default=50_000, help="how many (default: 50000)")
    parser.add_argument("--seed", type=int, default=0, help="key of all draws (default: 0)")
    parser.add_argument(
        "--labels",
        choices=("random", "balanced"),
        default=labels,
        help=f"draw each label, as published, or have every class equally often (default: {labels})",
    )
    parser.add_argument("--classes", type=_numbers, help="only these classes, e.g. 207,360 (default: all)")
    parser.add_argument("--batch-size-per-gpu", type=int, default=64, help="samples per batch (default: 64)")
    parser.add_argument(
        "--samples-per-shard", type=int, default=1000, help="samples after which a file is written (default: 1000)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def parse_checked(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends with code 2 for what makes no sense."""
    parsed = parser.parse_args(arguments)
    for name in ("num_samples", "batch_size_per_gpu", "samples_per_shard"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: found {getattr(parsed, name)}, expected at least 1")
    if parsed.config is None and not Path(parsed.checkpoint).is_dir():
        parser.error(f"--checkpoint: {parsed.checkpoint} is no folder; a file carries no configuration, give --config")
    return parsed


def write_requested(arguments: argparse.Namespace, make: Callable[[torch.device], SampleMaker]) -> None:
    """Sample on all ranks, and say what was done.

    Args:
        arguments: of `sampling_parser`.
        make: loads the network.
    Raises: UserError for what a user can put right.
    """
    from common import distributed
    from evaluation.sampling.folder import SampleRequest, write_samples

    with distributed.joined(arguments.device) as device:
        summary = write_samples(
            make(device),
            arguments.output_dir,
            SampleRequest(arguments.num_samples, arguments.seed, arguments.labels, arguments.classes),
            batch_size=arguments.batch_size_per_gpu,
            samples_per_shard=arguments.samples_per_shard,
            description={"checkpoint": Path(arguments.checkpoint).name, "weights": arguments.weights},
        )
        if distributed.rank() == 0:
            there = f", {summary.kept} were there already" if summary.kept else ""
            print(f"{arguments.output_dir}: {summary.written} samples in {summary.seconds:.1f} s{there}")
