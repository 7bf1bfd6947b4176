"""Average the alignment of two models over transformed images: SE-CKNNA from their feature files.

python tools/evaluate_alignment/se_cknna.py --feat-prefix1 features/vfm_vae --feat-prefix2 features/dinov2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command
from evaluation.alignment.metrics import DEFAULT_EPS, DEFAULT_K, METRICS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feat-prefix1", required=True, help="model that is assessed: PREFIX of PREFIX_clean.pt, ...")
    parser.add_argument("--feat-prefix2", required=True, help="reference model, alike")
    parser.add_argument("--conditions", nargs="+", help="transformed conditions (default: published)")
    parser.add_argument("--grid", action="store_true", help="every scale and every rotation as its own condition")
    parser.add_argument("--include-clean", action="store_true", help="the clean condition takes part in the mean")
    parser.add_argument("--reference", choices=("same", "clean"), default="same", help="images of the second model")
    parser.add_argument("--weights", nargs="+", default=[], metavar="CONDITION=W", help="in the mean (default: 1 each)")
    parser.add_argument("--metric", choices=sorted(METRICS), default="cknna", help="default: cknna")
    parser.add_argument("--topk", type=int, default=DEFAULT_K, help=f"neighbours (default: {DEFAULT_K})")
    parser.add_argument("--eps", type=float, default=DEFAULT_EPS, help="in the denominator of CKNNA and CKA")
    parser.add_argument("--min-overlap", type=float, default=0.95, help="least share of images that all files have")
    parser.add_argument("--halves", type=int, default=0, help="random halves for standard errors (default: none)")
    parser.add_argument("--output", type=Path, help="write results as JSON here")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parsed = parser.parse_args()
    if parsed.conditions and parsed.grid:
        parser.error("give --conditions or --grid")
    try:
        parsed.weights = {name: float(value) for name, _, value in (text.partition("=") for text in parsed.weights)}
    except ValueError:
        parser.error("--weights: expected CONDITION=NUMBER, such as equivariance=2")
    if parsed.halves < 0 or not 0 <= parsed.min_overlap <= 1 or parsed.eps < 0:
        parser.error("expected --halves from 0, --min-overlap from 0 to 1 and --eps from 0")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from common.distributed import pick_device
    from common.files import write_json_atomically
    from evaluation.alignment.conditions import expand
    from evaluation.alignment.extraction import find_conditions
    from evaluation.alignment.results import plain_se, se_text
    from evaluation.alignment.scores import Scoring
    from evaluation.alignment.se_cknna import Aggregation, score_conditions

    names = ["grid"] if arguments.grid else arguments.conditions or ["published"]
    conditions = tuple(condition.name for condition in expand(names))
    how = Aggregation(conditions, arguments.include_clean, arguments.reference, arguments.weights)
    scoring = Scoring(
        arguments.metric,
        arguments.topk,
        arguments.eps,
        min_overlap=arguments.min_overlap,
        halves=arguments.halves,
        device=pick_device(arguments.device),
    )
    prefixes = (arguments.feat_prefix1, arguments.feat_prefix2)
    first, second = (find_conditions(prefix, how.scored) for prefix in prefixes)
    found = score_conditions([first], [second], how, scoring)
    print(se_text(found, scoring))
    if arguments.output:
        write_json_atomically(arguments.output, {"prefixes": prefixes, **plain_se(found, scoring)})


if __name__ == "__main__":
    run_command(main)
