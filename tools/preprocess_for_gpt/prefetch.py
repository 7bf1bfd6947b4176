"""Tokens of a labelled data set for autoregressive models, on the CPU, one GPU or many (docs/latents.md)."""

from __future__ import annotations

import argparse

from common.command import run_command
from evaluation.prefetch.command import parse_checked, prefetch_parser, run_prefetch


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = prefetch_parser(__doc__, images_per_shard=10_000)
    parser.add_argument(
        "--crops",
        choices=("centre", "ten"),
        default="ten",
        help="views of an image: centre crop and mirrored, or ten crops of a slightly larger one (default: ten)",
    )
    return parse_checked(parser, arguments)


def main() -> None:
    arguments = parse_arguments()
    from configs.schema import load_tokenizer_config
    from evaluation.prefetch.tokens import TokenFormat

    config = load_tokenizer_config(arguments.use_config)
    run_prefetch(
        arguments,
        config,
        lambda resolution: TokenFormat(arguments.crops, resolution),
    )


if __name__ == "__main__":
    run_command(main)
