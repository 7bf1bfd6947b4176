"""Extract one feature vector per image from a model, under every condition of an alignment analysis.

python tools/evaluate_alignment/extract.py vfm --vfm-name DINOV2_FOLDER --scale-factor 0.875 \\
    --input-dir alignment --output-dir features --output-prefix dinov2
python tools/evaluate_alignment/extract.py diffusion --checkpoint runs/lightningdit --timesteps 0.25 0.5 0.75 \\
    --latents alignment/latents --output-dir features --output-prefix lightningdit
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command
from evaluation.alignment.model_arguments import add_model_parsers, section_of

KINDS = ("vfm", "tokenizer", "autoencoder", "diffusion")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in (kinds := add_model_parsers(parser, KINDS)):
        kind.add_argument("--output-dir", required=True, type=Path, help="gets the feature files")
        kind.add_argument("--output-prefix", required=True, help="what the names of the files start with")
        kind.add_argument("--batch-size-per-gpu", type=int, default=32, help="images per batch (default: 32)")
        kind.add_argument("--format", choices=("pt", "safetensors"), default="pt", help="of the files (default: pt)")
        kind.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    for kind in kinds[:-1]:  # a diffusion model takes latents of the clean images instead
        kind.add_argument("--input-dir", required=True, help="root folder that preprocess.py filled")
        kind.add_argument(
            "--conditions",
            nargs="+",
            default=["clean", "published"],
            help="names, `published` (equivariance and four noise levels), `grid` (default: clean published)",
        )
        kind.add_argument("--resolution", type=int, default=256, help="side before transformations (default: 256)")
        kind.add_argument("--num-workers", type=int, default=4, help="threads that read")
    parsed = parser.parse_args()
    for name in ("resolution", "batch_size_per_gpu", "num_workers"):
        if getattr(parsed, name, 1) < 1:
            parser.error(f"--{name.replace('_', '-')}: found {getattr(parsed, name)}, expected at least 1")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    section = section_of(arguments)
    from common import distributed

    with distributed.joined(arguments.device) as device:
        (extract_diffusion if arguments.kind == "diffusion" else extract)(arguments, section, device)


def extract(arguments: argparse.Namespace, section, device) -> None:
    from common import distributed
    from configs.schema import load_tokenizer_config
    from evaluation.alignment.conditions import expand
    from evaluation.alignment.extraction import ExtractionOptions, extract_to_folder
    from evaluation.alignment.images import AnalysisImages
    from evaluation.alignment.models.base import load_model

    conditions = expand(arguments.conditions)
    images = distributed.on_rank_0(lambda: AnalysisImages(arguments.input_dir))
    model = load_model(section, device, load_tokenizer_config)
    how = ExtractionOptions(arguments.resolution, arguments.batch_size_per_gpu, device, arguments.num_workers)
    folder, prefix = arguments.output_dir, arguments.output_prefix
    extracted = extract_to_folder(model, section, images, conditions, folder, prefix, how, f".{arguments.format}")
    if distributed.rank() == 0:
        kept = len(conditions) - extracted
        print(f"{len(images.clean)} images, {extracted} conditions extracted, {kept} kept: {', '.join(model.outputs)}")


def extract_diffusion(arguments: argparse.Namespace, section, device) -> None:
    from common import distributed
    from evaluation.alignment.extraction import extract_parts_to_folder
    from evaluation.alignment.models.diffusion import load, open_latents

    model = load(section, device)
    stored = open_latents(section, model.network)
    folder, prefix, suffix = arguments.output_dir, arguments.output_prefix, f".{arguments.format}"
    extracted = extract_parts_to_folder(
        model, section, stored, folder, prefix, arguments.batch_size_per_gpu, device, suffix
    )
    if distributed.rank() == 0:
        kept = len(model.timesteps) - extracted
        print(f"{len(stored)} images, timesteps: {extracted} extracted, {kept} kept; {', '.join(model.parts)}")


if __name__ == "__main__":
    run_command(main)
