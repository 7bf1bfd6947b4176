"""Score feature files against one another: one pair, or a matrix of many rows and columns.

python tools/evaluate_alignment/metrics.py --feat-path1 vae_clean.pt --feat-path2 dinov2_clean.pt --output scores.json
python tools/evaluate_alignment/metrics.py --rows 'dit_block_*.pt' --cols 'dinov2_layer_*.pt' --heat-map layers.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command
from evaluation.alignment.metrics import DEFAULT_EPS, DEFAULT_K, METRICS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feat-path1", help="feature file: first argument (the model that is assessed)")
    parser.add_argument("--feat-path2", help="feature file: second argument (the reference)")
    parser.add_argument("--rows", nargs="+", help="many first arguments: files or quoted patterns")
    parser.add_argument("--cols", nargs="+", help="many second arguments: files or quoted patterns")
    parser.add_argument("--output", type=Path, help="write results here: .json, or .pt in the published layout")
    parser.add_argument("--csv", type=Path, help="write one line per score here")
    parser.add_argument("--heat-map", type=Path, help="draw the first metric of a matrix here (.svg)")
    parser.add_argument("--metrics", nargs="+", choices=sorted(METRICS), default=["cknna"], help="default: cknna")
    parser.add_argument("--topk", nargs="+", type=int, default=[DEFAULT_K], help=f"neighbours (default: {DEFAULT_K})")
    parser.add_argument("--eps", type=float, default=DEFAULT_EPS, help="in the denominator of CKNNA and CKA")
    parser.add_argument("--clip", choices=("matrix", "rows", "none"), default="matrix", help="how outliers are found")
    parser.add_argument("--min-overlap", type=float, default=0.95, help="least share of images that all files have")
    parser.add_argument("--halves", type=int, default=0, help="random halves for standard errors (default: none)")
    parser.add_argument("--seed", type=int, default=0, help="of these halves (default: 0)")
    parser.add_argument("--trials", type=int, default=1, help="times each score is computed, to time it (default: 1)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parsed = parser.parse_args()
    pair, matrix = (parsed.feat_path1, parsed.feat_path2), (parsed.rows, parsed.cols)
    if [all(pair), all(matrix)].count(True) != 1 or any(pair) == any(matrix):
        parser.error("give --feat-path1 and --feat-path2, or --rows and --cols")
    if parsed.heat_map and not parsed.rows:
        parser.error("--heat-map needs --rows and --cols")
    if parsed.output and parsed.output.suffix not in (".json", ".pt"):
        parser.error(f"--output: found the suffix {parsed.output.suffix!r}, expected .json or .pt")
    if parsed.trials < 1 or parsed.halves < 0 or not 0 <= parsed.min_overlap <= 1 or parsed.eps < 0:
        parser.error("expected --trials from 1, --halves from 0, --min-overlap from 0 to 1 and --eps from 0")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from common.distributed import pick_device
    from common.files import write_text_atomically
    from evaluation.alignment.comparison import Comparison, compare_files, expand_patterns
    from evaluation.alignment.heat_map import heat_map_file
    from evaluation.alignment.results import write_scores_csv
    from evaluation.alignment.scores import Scoring

    rows = [Path(arguments.feat_path1)] if arguments.feat_path1 else expand_patterns(arguments.rows)
    columns = [Path(arguments.feat_path2)] if arguments.feat_path2 else expand_patterns(arguments.cols)
    device = pick_device(arguments.device)
    ways = [
        Scoring(
            metric, k, arguments.eps, arguments.clip, arguments.min_overlap, arguments.halves, arguments.seed, device
        )
        for metric in arguments.metrics
        for k in (arguments.topk if METRICS[metric].uses_k else arguments.topk[:1])
    ]
    found: Comparison = compare_files(rows, columns, ways, arguments.trials)
    print(found.as_text())
    if arguments.output:
        found.write(arguments.output)
    if arguments.csv:
        write_scores_csv(arguments.csv, found.records())
    if arguments.heat_map:
        write_text_atomically(arguments.heat_map, heat_map_file(found.heat_map()))


if __name__ == "__main__":
    run_command(main)
