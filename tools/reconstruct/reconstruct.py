"""Reconstruct images of a folder or of shards with a trained tokenizer, on the CPU, one GPU or many (with torchrun)."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys

from common.command import run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", required=True, help="gets inputs/, outputs/ and manifest.json")
    add_reconstruction_arguments(parser)
    parsed = parser.parse_args(arguments)
    check_reconstruction_arguments(parser, parsed)
    return parsed


def add_reconstruction_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is reconstructed, and how."""
    parser.add_argument("--input-dir", required=True, help="folder of images or of *.tar shards, or one shard")
    parser.add_argument("--vae-pth", required=True, help="checkpoint folder, run folder or reference .pth")
    parser.add_argument("--use-config", help="YAML of the model; may be left out if the checkpoint carries it")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights (default: ema)")
    parser.add_argument("--resolution", type=int, help="side of the crops (default: the model's)")
    parser.add_argument("--crop", choices=("torchvision", "adm"), default="torchvision", help="resize and crop rule")
    parser.add_argument(
        "--latent",
        choices=("sample", "mode"),
        default="sample",
        help="sample or mean of the posterior; a discrete latent is the same in both (default: sample)",
    )
    parser.add_argument("--seed", type=int, default=0, help="key of the posterior noise (default: 0)")
    parser.add_argument("--batch-size-per-gpu", type=int, default=32, help="images per batch (default: 32)")
    parser.add_argument("--recursive", action="store_true", help="also search sub-folders of the input folder")
    parser.add_argument("--num-images", type=int, help="only the first so many images by name")
    parser.add_argument("--skip-existing", action="store_true", help="keep images that this model already wrote")
    parser.add_argument("--num-workers", type=int, default=4, help="threads that read, and as many that write")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")


def check_reconstruction_arguments(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuse numbers below 1."""
    for name in ("resolution", "batch_size_per_gpu", "num_images", "num_workers"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: found {value}, expected at least 1")


def main() -> int:
    arguments = parse_arguments()
    from common import distributed

    with distributed.joined(arguments.device) as device:
        return exit_code_of(reconstruct(arguments, device))


def reconstruct(arguments: argparse.Namespace, device):
    """Reconstruct what the arguments say; returns the `Summary`."""
    from configs.schema import load_tokenizer_config
    from evaluation.reconstruction import Protocol, reconstruct_folder
    from networks.checkpoint import load_tokenizer

    config = load_tokenizer_config(arguments.use_config)
    model = load_tokenizer(arguments.vae_pth, config, device=device, weights=arguments.weights)
    refuse_conditional(model.config)
    resolution = arguments.resolution or model.config.img_resolution
    model.require_image_size(resolution, resolution)
    return reconstruct_folder(
        model,
        arguments.input_dir,
        arguments.output_dir,
        Protocol(resolution, arguments.crop, arguments.latent, arguments.seed),
        batch_size=arguments.batch_size_per_gpu,
        device=device,
        recursive=arguments.recursive,
        num_images=arguments.num_images,
        skip_existing=arguments.skip_existing,
        workers=arguments.num_workers,
        description={
            "weights": arguments.weights,
            "checkpoint": arguments.vae_pth,
            "config_sha256": hash_of(model.config),
            "input_dir": arguments.input_dir,
        },
    )


def hash_of(config) -> str:
    """SHA-256 of a tokenizer's configuration as JSON with sorted keys."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def exit_code_of(summary) -> int:
    """Print what became of the images on rank 0; 1 if some could not be read."""
    from common import distributed

    if distributed.rank() == 0:
        print(f"{summary.reconstructed} images reconstructed in {summary.seconds:.1f} s, {summary.kept} kept")
        for image in summary.unreadable:
            print(f"not readable: {image.name} ({image.reason})", file=sys.stderr)
        if summary.unreadable:
            print(f"error: {len(summary.unreadable)} of {summary.found} images not readable", file=sys.stderr)
    return 1 if summary.unreadable else 0


def refuse_conditional(config) -> None:
    """Stop if the decoder needs labels, which a folder of images does not have."""
    from common.errors import UserError

    if config.conditional:
        raise UserError(
            f"--vae-pth: this tokenizer's decoder is conditional on labels (label_type {config.decoder.label_type}), "
            "which a folder of images does not have; only decoders without labels can be used here. In Python, "
            "`decode(z, c)` of the tokenizer takes labels."
        )


if __name__ == "__main__":
    run_command(main)
