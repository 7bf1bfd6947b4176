"""Benchmark a tokenizer in one go: reconstruct a set of images, compute every metric, write results and a page.

The output folder gets inputs/, outputs/ and manifest.json as from reconstruct.py, results.json (metrics with their full
protocol), per_image.csv and report.html. Runs on the CPU, one GPU or many (with torchrun).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluate import add_metric_arguments, build_metrics, check_metric_arguments, print_metrics
from reconstruct import add_reconstruction_arguments, check_reconstruction_arguments, exit_code_of, reconstruct

from common.command import run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path, help="gets everything that is written")
    add_reconstruction_arguments(parser)
    add_metric_arguments(parser, extractor="auto")
    parsed = parser.parse_args(arguments)
    check_reconstruction_arguments(parser, parsed)
    check_metric_arguments(parser, parsed)
    return parsed


def main() -> int:
    """Returns the exit code: 1 if images could not be read."""
    arguments = parse_arguments()
    from common import distributed

    with distributed.joined(arguments.device) as device:
        return benchmark(arguments, device)


def benchmark(arguments: argparse.Namespace, device) -> int:
    """Reconstruct, evaluate, and on rank 0 write the results; returns the exit code."""
    from common import distributed
    from common.errors import DataError
    from evaluation.output_folder import read_manifest
    from evaluation.quality import pair_folders
    from evaluation.reconstruction import INPUT_FOLDER, OUTPUT_FOLDER
    from evaluation.reconstruction_report import REPORT_NAME, Benchmark, remove_results, write_benchmark
    from evaluation.reconstruction_scores import evaluate_pairs

    # First of all, so that a missing weights file costs no reconstruction.
    metrics = build_metrics(arguments, device, arguments.batch_size_per_gpu, arguments.num_workers)
    folder = arguments.output_dir
    if distributed.rank() == 0:
        remove_results(folder)
    summary = reconstruct(arguments, device)
    if summary.reconstructed + summary.kept == 0:
        first = summary.unreadable[0]
        raise DataError(f"none of {summary.found} images can be read; the first: {first.name} ({first.reason}).")
    pairs = pair_folders(folder / INPUT_FOLDER, folder / OUTPUT_FOLDER, resize=arguments.resize)
    evaluation = evaluate_pairs(pairs, metrics)
    if distributed.rank() == 0:
        write_benchmark(folder, Benchmark(pairs, evaluation, read_manifest(folder)))
    code = exit_code_of(summary)
    if distributed.rank() == 0:
        print_metrics(evaluation)
        print(f"report:  {(folder / REPORT_NAME).resolve()}")
    return code


if __name__ == "__main__":
    run_command(main)
