"""Unpack WebDataset shards into a flat folder of images, byte for byte."""

from __future__ import annotations

import argparse
import sys

from common.command import run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input-dir", required=True, help="folder of *.tar shards, or one shard")
    parser.add_argument("--output-dir", required=True, help="gets the images; what is there already is kept")
    parser.add_argument(
        "--labels-json",
        help='also write {"labels": [[file name, class index], ...]} here; called dataset.json and beside the images, '
        "it makes them a labelled data set",
    )
    parser.add_argument("--workers", type=int, default=4, help="threads that copy (default: 4)")
    parsed = parser.parse_args(arguments)
    if parsed.workers < 1:
        parser.error(f"--workers: found {parsed.workers}, expected at least 1")
    return parsed


def main() -> int:
    """Returns the exit code: 1 if something could not be extracted."""
    arguments = parse_arguments()
    from data.extract_shards import extract_shards
    from data.skips import count_by_kind_and_shard

    report = extract_shards(
        arguments.input_dir,
        arguments.output_dir,
        labels_json=arguments.labels_json,
        workers=arguments.workers,
        progress=True,
    )
    print(f"{report.written} images written, {report.kept} kept, from {report.shards} shards")
    if arguments.labels_json:
        print(f"{report.labelled} class indices in {arguments.labels_json}")
    for kind, shards in count_by_kind_and_shard(report.problems).items():
        for shard, count in shards.items():
            print(f"not extracted: {shard}: {kind} ({count})", file=sys.stderr)
    if report.problems:
        print(f"error: {len(report.problems)} problems; the first: {report.problems[0]}", file=sys.stderr)
    return 1 if report.problems else 0


if __name__ == "__main__":
    run_command(main)
