"""Compare reconstructions with their originals: PSNR, SSIM, LPIPS and, as sets, rFID, rIS and KID.

LPIPS needs torchvision's VGG16 weights and is left out without them. The metrics of sets are computed with --all, on
Inception features, or with --extractor on others, under names of their own. torchrun shares the work.
"""

from __future__ import annotations

import argparse

from common.command import run_command
from evaluation.extractors import EXTRACTORS


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref-dir", required=True, help="originals (the inputs/ folder of reconstruct.py)")
    parser.add_argument("--pred-dir", required=True, help="reconstructions (its outputs/ folder)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch; does not change the numbers")
    parser.add_argument("--num-workers", type=int, default=8, help="threads that read images")
    parser.add_argument("--output-json", help="write the means and the protocol here")
    parser.add_argument("--per-image-csv", help="write one line per pair here")
    parser.add_argument("--allow-unmatched", action="store_true", help="ignore images that have no partner")
    parser.add_argument("--all", action="store_true", help="also rFID, rIS and KID: --extractor inception")
    add_metric_arguments(parser, extractor="none")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parsed = parser.parse_args(arguments)
    if parsed.all and parsed.extractor == "none":
        parsed.extractor = "inception"
    check_metric_arguments(parser, parsed)
    if parsed.batch_size < 1 or parsed.num_workers < 0:
        parser.error("--batch-size must be at least 1 and --num-workers at least 0")
    return parsed


def add_metric_arguments(parser: argparse.ArgumentParser, extractor: str) -> None:
    """The flags that choose metrics; `extractor` is the default."""
    parser.add_argument(
        "--resize",
        type=int,
        help="bring all images to this side first, by PIL's bicubic filter (default: none; published VFMTok: 256)",
    )
    parser.add_argument("--psnr-cap", type=float, default=100.0, help="most dB that one pair counts (default: 100)")
    parser.add_argument(
        "--lpips-vgg16", help="torchvision's VGG16 weights file (default: the torch hub cache's, if any)"
    )
    parser.add_argument(
        "--extractor",
        choices=("auto", *EXTRACTORS, "none"),
        default=extractor,
        help="features for the metrics of sets; auto: inception where its weights are found, else efficientnet_lite0, "
        "whose numbers have names of their own (default: %(default)s)",
    )
    parser.add_argument("--inception-weights", help="Inception weights file (default: the torch hub cache's)")


def check_metric_arguments(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuse a weights file that nothing would read, and images of no size."""
    if parsed.resize is not None and parsed.resize < 1:
        parser.error(f"--resize: found {parsed.resize}, expected at least 1")
    if parsed.inception_weights and parsed.extractor not in ("auto", "inception"):
        parser.error(f"--inception-weights: --extractor {parsed.extractor} does not use it; add --all")


def main() -> None:
    arguments = parse_arguments()
    from common import distributed

    with distributed.joined(arguments.device) as device:
        evaluate(arguments, device)


def evaluate(arguments: argparse.Namespace, device) -> None:
    """Evaluate the pairs that the arguments name; rank 0 writes and prints."""
    from common import distributed
    from common.files import write_json_atomically
    from evaluation.quality import pair_folders, write_csv
    from evaluation.reconstruction_scores import evaluate_pairs

    pairs = pair_folders(arguments.ref_dir, arguments.pred_dir, arguments.allow_unmatched, arguments.resize)
    metrics = build_metrics(arguments, device, arguments.batch_size, arguments.num_workers)
    evaluation = evaluate_pairs(pairs, metrics)
    if distributed.rank() != 0:
        return
    if arguments.per_image_csv:
        write_csv(arguments.per_image_csv, evaluation.scores)
    if arguments.output_json:
        record = evaluation.metrics() | evaluation.counts() | {"protocol": evaluation.protocol()}
        write_json_atomically(arguments.output_json, record)
    print_metrics(evaluation)


def build_metrics(arguments: argparse.Namespace, device, batch_size: int, workers: int):
    """The metrics that `add_metric_arguments` chose."""
    from common import distributed
    from evaluation.generation import Computing
    from evaluation.reconstruction_scores import Metrics, choose_extractor, choose_lpips

    lpips = choose_lpips(arguments.lpips_vgg16)
    extractor = choose_extractor(arguments.extractor, arguments.inception_weights)
    return Metrics(
        Computing(device, batch_size, max(workers, 1), show_progress=distributed.rank() == 0),
        lpips=None if lpips is None else lpips.to(device),
        extractor=None if extractor is None else extractor.to(device),
        psnr_cap=arguments.psnr_cap,
    )


def print_metrics(evaluation) -> None:
    """The means on stdout."""
    from evaluation.reconstruction_scores import LPIPS_LEFT_OUT

    summary, sets = evaluation.summary, evaluation.set_scores
    print(f"Total:   {summary.total} pairs" + (f" ({evaluation.unmatched} unmatched)" if evaluation.unmatched else ""))
    print(f"LPIPS:   {LPIPS_LEFT_OUT if summary.lpips is None else f'{summary.lpips:.4f}'}")
    cap = f"  ({summary.capped} pairs above {summary.psnr_cap:g} dB counted as that)" if summary.capped else ""
    print(f"PSNR:    {summary.psnr:.4f} dB{cap}")
    print(f"SSIM:    {summary.ssim:.4f}  (images in [-1, 1], the convention of published tokenizer tables)")
    print(f"ssim_01: {summary.ssim_01:.4f}  (images in [0, 1])")
    if sets is not None:
        for name, value in sets.values.items():
            print(f"{name}: {value:.4f}" if abs(value) >= 1 else f"{name}: {value:.6f}")
        if sets.caution:
            print(f"note: {sets.caution}")


if __name__ == "__main__":
    run_command(main)
