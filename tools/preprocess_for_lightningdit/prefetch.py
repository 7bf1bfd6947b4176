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
    from configs.schema import load_config, of_tokenizer
    from evaluation.prefetch.lightningdit import LightningDiTFormat
    from networks.checkpoint import load_tokenizer

    config = of_tokenizer(load_config(arguments.use_config)).tokenizer() if arguments.use_config else None
    run_prefetch(
        arguments,
        lambda resolution: LightningDiTFormat(arguments.latent, arguments.seed, arguments.dtype, arguments.stats),
        lambda device: load_tokenizer(arguments.vae_pth, config, device=device, weights=arguments.weights),
    )


if __name__ == "__main__":
    run_command(main)
