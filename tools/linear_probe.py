"""Top-1 and top-5 of a linear classifier on latents, or on features of the frozen encoder (docs/latents.md)."""

from __future__ import annotations

import argparse
import sys

from common.command import run_command
from evaluation.prefetch.command import encoding_parser, encoding_session, parse_checked, print_skips

RESULT_FILE = "result.json"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = encoding_parser(__doc__, images_per_shard=10_000)
    parser.add_argument("--train-path", required=True, help="folder of *.tar shards with classes, or one shard")
    parser.add_argument("--val-path", required=True, help="the same, for the accuracies")
    parser.add_argument("--features", choices=("latent", "encoder"), default="latent", help="default: latent")
    parser.add_argument("--pooling", choices=("mean", "flatten"), default="mean", help="of positions (default: mean)")
    parser.add_argument(
        "--latent", choices=("mode", "sample"), default="mode", help="mean of the posterior or a draw (default: mode)"
    )
    parser.add_argument("--layer", type=int, help="of the encoder (default: the last that the tokenizer uses)")
    parser.add_argument("--epochs", type=int, default=100, help="of the classifier (default: 100)")
    parser.add_argument("--probe-batch-size", type=int, default=1024, help="of the classifier (default: 1024)")
    parser.add_argument("--learning-rate", type=float, default=1e-2, help="of the classifier (default: 0.01)")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of the classifier (default: 0)")
    return parse_checked(parser, arguments)


def main() -> None:
    arguments = parse_arguments()
    from pathlib import Path

    from common import distributed
    from common.files import write_json_atomically
    from configs.schema import load_tokenizer_config
    from evaluation.linear_probe import ProbeFeatures, ProbeTraining, run_linear_probe

    config = load_tokenizer_config(arguments.use_config)
    features = ProbeFeatures(
        arguments.features, arguments.pooling, arguments.latent, arguments.layer, seed=arguments.seed
    )
    training = ProbeTraining(
        arguments.epochs, arguments.probe_batch_size, arguments.learning_rate, arguments.weight_decay, arguments.seed
    )
    with encoding_session(arguments, config) as session:
        result = run_linear_probe(
            session.model,
            arguments.train_path,
            arguments.val_path,
            arguments.output_dir,
            features,
            training,
            session.options,
            session.device,
        )
        if distributed.rank() == 0:
            write_json_atomically(Path(arguments.output_dir) / RESULT_FILE, result.record)
            for summary in result.summaries:
                print_skips(summary.skips)
            if result.record["shared_keys"]:
                shared = result.record["shared_keys"]
                print(f"warning: {shared} sample keys occur in both data sets", file=sys.stderr)
            images = result.record["validation"]["counts"]["written"]
            print(f"top-1: {result.validation.top1:.4f}  top-5: {result.validation.top5:.4f}  ({images} images)")


if __name__ == "__main__":
    run_command(main)
