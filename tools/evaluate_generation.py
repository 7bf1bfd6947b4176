"""FID, sFID, Inception Score, precision and recall of generated images, as ADM's evaluator defines them.

Either set is an .npz file (arr_0: uint8 [N, H, W, 3], and optionally mu, sigma, mu_s, sigma_s), a folder of images of
one size, or shards.
"""

from __future__ import annotations

import argparse
import sys

from common.command import run_command
from evaluation.extractors import EXTRACTORS

LABELS = {
    "inception_score": "Inception Score",
    "fid": "FID",
    "sfid": "sFID",
    "precision": "Precision",
    "recall": "Recall",
    "kid": "KID",
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref", required=True, help="reference batch or images")
    parser.add_argument("--sample", help="generated images; may be left out with --write-ref-batch")
    parser.add_argument(
        "--extractor",
        choices=tuple(EXTRACTORS),
        default="inception",
        help="default: inception; efficientnet_lite0 needs no download and gives numbers of its own",
    )
    parser.add_argument(
        "--inception-weights", help="weights-inception-2015-12-05-6726825d.pth (default: in $TORCH_HOME)"
    )
    parser.add_argument("--output-json", help="write metrics and protocol here")
    parser.add_argument("--write-ref-batch", help="write --ref as a reference batch (.npz) for later comparisons")
    parser.add_argument("--ref-batch-images", type=int, default=10_000, help="images kept in it (default: 10000)")
    parser.add_argument("--kid", action="store_true", help="also the kernel distance (KID)")
    parser.add_argument("--pr-half", action="store_true", help="precision and recall from half-precision distances")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch on each rank (default: 64)")
    parser.add_argument("--num-workers", type=int, default=4, help="threads that read images of folders")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parsed = parser.parse_args(arguments)
    for name in ("ref_batch_images", "batch_size", "num_workers"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: found {getattr(parsed, name)}, expected at least 1")
    if not parsed.sample and not parsed.write_ref_batch:
        parser.error("give --sample, or --write-ref-batch, or both")
    if parsed.write_ref_batch and not parsed.write_ref_batch.endswith(".npz"):
        parser.error(f"--write-ref-batch: found {parsed.write_ref_batch}, expected a name that ends in .npz")
    if parsed.inception_weights and parsed.extractor != "inception":
        parser.error("--inception-weights belongs to --extractor inception")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from common import distributed

    with distributed.joined(arguments.device) as device:
        evaluate(arguments, device)


def evaluate(arguments: argparse.Namespace, device) -> None:
    from common import distributed
    from common.files import write_json_atomically
    from evaluation.extractors import load_extractor
    from evaluation.generation import Computing, MetricOptions, evaluate_generation, make_reference_batch

    extractor = load_extractor(arguments.extractor, arguments.inception_weights).to(device)
    computing = Computing(device, arguments.batch_size, arguments.num_workers, distributed.rank() == 0)
    if arguments.write_ref_batch:
        make_reference_batch(arguments.ref, arguments.write_ref_batch, extractor, computing, arguments.ref_batch_images)
        if distributed.rank() == 0:
            print(f"reference batch written to {arguments.write_ref_batch}")
    if not arguments.sample:
        return
    options = MetricOptions(arguments.pr_half, arguments.kid)
    result = evaluate_generation(arguments.ref, arguments.sample, extractor, computing, options)
    if result is None:
        return
    for name, value in result["metrics"].items():
        print(f"{LABELS.get(name, name)}: {value:.6f}")
    for name, reason in result["left_out"].items():
        print(f"{LABELS.get(name, name)}: left out ({reason})")
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.output_json:
        write_json_atomically(arguments.output_json, result)


if __name__ == "__main__":
    run_command(main)
