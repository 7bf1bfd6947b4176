"""Write the digit scans that come with scikit-learn as shards, and a small random target encoder for REG."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", required=True, type=Path, help="gets training/, heldout/ and target_encoder/")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse_arguments()
    from data.digits import write_digit_shards
    from networks.encoders.random_dinov2 import write_random_dinov2

    split = write_digit_shards(arguments.output_dir)
    write_random_dinov2(arguments.output_dir / "target_encoder")
    print(f"{arguments.output_dir}: {len(split.training)} scans to train on, {len(split.held_out)} held out")


if __name__ == "__main__":
    run_command(main)
