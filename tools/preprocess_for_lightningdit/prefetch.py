"""Latents of a labelled data set for LightningDiT, on the CPU, one GPU or many (docs/latents.md)."""

from __future__ import annotations

import argparse

from common.command import run_command
from evaluation.prefetch.command import latent_parser, parse_checked, run_prefetch


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = latent_parser(__doc__, images_per_shard=10_000)
    parser.add_argument(
        "--latent",
        choices=("sample", "mode"),
        default="sample",
        help="sample or mean of the posterior; a discrete latent is the same in both (default: sample)",
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of what is stored")
    return parse_checked(parser, arguments)


def main() -> None:
    arguments = parse_arguments()
    from configs.schema import load_tokenizer_config
    from evaluation.prefetch.lightningdit import LightningDiTFormat

    config = load_tokenizer_config(arguments.use_config)
    run_prefetch(
        arguments,
        config,
        lambda resolution: LightningDiTFormat(arguments.latent, arguments.seed, arguments.dtype, arguments.stats),
    )


if __name__ == "__main__":
    run_command(main)
