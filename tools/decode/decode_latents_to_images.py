"""Decode the latents or tokens that a network sampled, on the CPU, one GPU or many (with torchrun).

Images are named rank00_000000.png, ... in the order of the shards, however many processes decode them. An interrupted
run goes on where it was.
"""

from __future__ import annotations

import argparse
import sys

from common.command import run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input-dir", required=True, help="folder of *.safetensors shards with latents or tokens, and labels"
    )
    parser.add_argument("--output-dir", required=True, help="gets the PNG files, labels.json and manifest.json")
    parser.add_argument("--vae-pth", required=True, help="checkpoint folder, run folder or reference .pth")
    parser.add_argument("--use-config", help="YAML of the model; may be left out if the checkpoint carries it")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights (default: ema)")
    parser.add_argument("--batch-size-per-gpu", type=int, default=32, help="latents per batch (default: 32)")
    parser.add_argument("--output-npz", help="also write all images into this .npz file (arr_0), in order of name")
    parser.add_argument("--no-png", dest="pngs", action="store_false", help="write no PNG files, only --output-npz")
    parser.add_argument(
        "--skip-existing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep images that this model already made of these latents (default); otherwise decode all again",
    )
    parser.add_argument(
        "--world-size",
        type=int,
        default=1,
        help="name the images as the reference does with so many processes (default: 1)",
    )
    parser.add_argument("--max-images-per-gpu", type=int, help="only the first so many of each rank of --world-size")
    parser.add_argument(
        "--output-size",
        type=int,
        help="bring images to this side first, bicubically (default: as decoded; published samples of VFMTok: 256)",
    )
    parser.add_argument("--antialias", action="store_true", help="antialias in that; published samples are not")
    parser.add_argument("--class-index-json", help="class index -> text, for labels.json and decoders that read texts")
    parser.add_argument("--skip-bad-shards", action="store_true", help="go on without shards that cannot be read")
    parser.add_argument("--num-workers", type=int, default=4, help="threads that write images")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parsed = parser.parse_args(arguments)
    for name in ("batch_size_per_gpu", "world_size", "max_images_per_gpu", "output_size", "num_workers"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: found {value}, expected at least 1")
    if not parsed.pngs and not parsed.output_npz:
        parser.error("--no-png: nothing to write; give --output-npz")
    if parsed.antialias and parsed.output_size is None:
        parser.error("--antialias: nothing to resize; give --output-size")
    if parsed.output_npz and not parsed.output_npz.endswith(".npz"):
        parser.error(f"--output-npz: found {parsed.output_npz}, expected a name that ends in .npz")
    return parsed


def main() -> int:
    arguments = parse_arguments()
    from common import distributed

    with distributed.joined(arguments.device) as device:
        return decode(arguments, device)


def decode(arguments: argparse.Namespace, device) -> int:
    """Returns the exit code: 1 if shards were left out."""
    from pathlib import Path

    from common import distributed
    from configs.schema import load_tokenizer_config
    from data.labels import read_class_texts
    from evaluation.decoding import DecodePlan, DecodeTargets, OutputSize, decode_folder
    from networks.checkpoint import load_tokenizer

    config = load_tokenizer_config(arguments.use_config)
    summary = decode_folder(
        load_tokenizer(arguments.vae_pth, config, device=device, weights=arguments.weights),
        DecodePlan(
            Path(arguments.input_dir),
            arguments.world_size,
            arguments.max_images_per_gpu,
            arguments.skip_bad_shards,
            OutputSize(arguments.output_size, arguments.antialias),
        ),
        DecodeTargets(
            Path(arguments.output_dir),
            arguments.pngs,
            Path(arguments.output_npz) if arguments.output_npz else None,
            arguments.skip_existing,
        ),
        batch_size=arguments.batch_size_per_gpu,
        device=device,
        class_texts=read_class_texts(arguments.class_index_json) if arguments.class_index_json else None,
        workers=arguments.num_workers,
        description={"weights": arguments.weights, "checkpoint": arguments.vae_pth, "input_dir": arguments.input_dir},
    )
    if distributed.rank() == 0:
        print(f"{summary.decoded} images decoded in {summary.seconds:.1f} s, {summary.kept} kept")
        for problem in summary.problems:
            print(f"left out: {problem}", file=sys.stderr)
    return 1 if summary.problems else 0


if __name__ == "__main__":
    run_command(main)
