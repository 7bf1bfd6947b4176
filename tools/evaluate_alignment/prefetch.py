"""Encode the clean images of an alignment analysis: the latents from which features of diffusion models start.

python tools/evaluate_alignment/prefetch.py tokenizer --vae-pth runs/stage_3 --input-dir alignment/clean \\
    --output-dir alignment/latents --latents-stats LATENTS_OF_THE_TRAINING/latents_stats.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command
from evaluation.alignment.model_arguments import add_model_parsers, section_of


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in add_model_parsers(parser, ("tokenizer", "autoencoder"), latent="sample"):
        kind.add_argument("--input-dir", required=True, type=Path, help="folder of clean images, SYNSET_ID.png")
        kind.add_argument("--output-dir", required=True, type=Path, help="gets the latents")
        kind.add_argument("--latents-stats", type=Path, help="latents_stats.pt of the diffusion training, copied along")
        kind.add_argument(
            "--class-encoder", help="DINOv2 whose class tokens are stored too (for REG): folder or hub id"
        )
        kind.add_argument("--class-scale-factor", type=float, default=0.875, help="resize before it (256 -> 224)")
        kind.add_argument("--no-labels", action="store_true", help="store the null class instead of the names' classes")
        kind.add_argument("--images-per-safetensor", type=int, default=1000, help="images per file (default: 1000)")
        kind.add_argument("--resolution", type=int, default=256, help="side of the images (default: 256)")
        kind.add_argument("--batch-size-per-gpu", type=int, default=32, help="images per batch (default: 32)")
        kind.add_argument("--num-workers", type=int, default=4, help="threads that read")
        kind.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parsed = parser.parse_args()
    for name in ("resolution", "batch_size_per_gpu", "num_workers", "images_per_safetensor"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: found {getattr(parsed, name)}, expected at least 1")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    section = section_of(arguments)
    from common import distributed

    with distributed.joined(arguments.device) as device:
        prefetch(arguments, section, device)


def prefetch(arguments: argparse.Namespace, section, device) -> None:
    from common import distributed
    from configs.schema import load_tokenizer_config
    from evaluation.alignment.latents import PrefetchOptions, copy_statistics, prefetch_latents
    from evaluation.alignment.models.base import load_model
    from networks.encoders.loading import load_vision_encoder

    model = load_model(section, device, load_tokenizer_config)
    class_encoder = None
    if arguments.class_encoder:
        scale = arguments.class_scale_factor
        class_encoder = load_vision_encoder(arguments.class_encoder, [-1], scale).to(device)
    how = PrefetchOptions(
        arguments.resolution,
        arguments.batch_size_per_gpu,
        arguments.images_per_safetensor,
        device,
        not arguments.no_labels,
        arguments.num_workers,
    )
    count = prefetch_latents(model, class_encoder, arguments.input_dir, arguments.output_dir, how)
    distributed.on_rank_0(lambda: copy_statistics(arguments.latents_stats, model, arguments.output_dir))
    if distributed.rank() == 0:
        print(f"latents of {count} images in {arguments.output_dir}")


if __name__ == "__main__":
    run_command(main)
