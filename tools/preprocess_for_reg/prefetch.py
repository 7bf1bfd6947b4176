"""Images and moments of a labelled data set for REG, on the CPU, one GPU or many (docs/latents.md)."""

from __future__ import annotations

import argparse

from common.command import run_command
from evaluation.prefetch.command import latent_parser, parse_checked, run_prefetch


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = latent_parser(__doc__, images_per_shard=2_000)
    parser.add_argument(
        "--format",
        choices=("folder", "safetensors"),
        default="folder",
        help="a PNG and a .npy file per image, or safetensors files with the same content (default: folder)",
    )
    parser.add_argument("--no-images", action="store_true", help="leave out the images, which REG needs")
    parser.add_argument("--images-folder-name", help="sub-folder of the PNG files (default: images)")
    parser.add_argument("--vae-folder-name", help="sub-folder of the .npy files (default: vae_latents)")
    parsed = parse_checked(parser, arguments)
    if parsed.format == "safetensors" and (parsed.images_folder_name or parsed.vae_folder_name):
        parser.error("--images-folder-name and --vae-folder-name: safetensors files have no sub-folders")
    if parsed.images_folder_name is not None and parsed.images_folder_name == parsed.vae_folder_name:
        parser.error("--images-folder-name and --vae-folder-name: expected two different names")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from configs.schema import load_tokenizer_config

    config = load_tokenizer_config(arguments.use_config)
    run_prefetch(
        arguments,
        config,
        lambda resolution: chosen_format(arguments),
    )


def chosen_format(arguments: argparse.Namespace):
    """The format that the arguments ask for."""
    from data.reg_latents import IMAGES_FOLDER, LATENTS_FOLDER
    from evaluation.prefetch.reg import RegFolderFormat, RegShardFormat

    common = {"with_images": not arguments.no_images, "stats": arguments.stats, "seed": arguments.seed}
    if arguments.format == "safetensors":
        return RegShardFormat(**common)
    return RegFolderFormat(
        **common,
        images_folder=arguments.images_folder_name or IMAGES_FOLDER,
        latents_folder=arguments.vae_folder_name or LATENTS_FOLDER,
        workers=arguments.num_workers,
    )


if __name__ == "__main__":
    run_command(main)
