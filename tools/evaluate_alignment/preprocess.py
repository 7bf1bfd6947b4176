"""Prepare the images of an alignment analysis: draw the clean set, the transformations, and write noisy copies.

python tools/evaluate_alignment/preprocess.py --output-dir alignment --draw-from DATA/val --num-images 10000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, type=Path, help="gets clean/, noise_*/ and the transformations")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--input-dir", type=Path, help="folder of clean PNG images (default: OUTPUT_DIR/clean)")
    source.add_argument("--draw-from", help="draw the clean set from this image folder or folder of shards")
    parser.add_argument("--num-images", type=int, default=10000, help="images to draw (default: 10000)")
    parser.add_argument("--crop", choices=("adm", "torchvision"), default="adm", help="crop of drawn images")
    parser.add_argument("--mode", choices=("equivariance", "noise", "all"), default="all", help="what to prepare")
    parser.add_argument(
        "--noise-levels", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.2], help="shares of the value range"
    )
    parser.add_argument("--resolution", type=int, default=256, help="side of drawn and of noisy images (default: 256)")
    parser.add_argument("--seed", type=int, default=42, help="of all draws (default: 42, the published one)")
    parser.add_argument("--num-workers", type=int, default=8, help="threads; do not change what is written")
    parsed = parser.parse_args()
    for name in ("num_images", "resolution", "num_workers"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: found {getattr(parsed, name)}, expected at least 1")
    if not all(0 <= level <= 1 for level in parsed.noise_levels) or parsed.seed < 0:
        parser.error("--noise-levels must be from 0 to 1, and --seed at least 0")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from evaluation.alignment.preprocess import CleanDraw, draw_clean_set, use_clean_set, write_noise, write_transforms

    root, workers = arguments.output_dir, arguments.num_workers
    if arguments.draw_from:
        how = CleanDraw(arguments.draw_from, arguments.num_images, arguments.resolution, arguments.crop, arguments.seed)
        unreadable = draw_clean_set(root, how, workers, show_progress=True)
        print(f"clean: {arguments.num_images} images, {len(unreadable)} left out as unreadable")
    elif arguments.input_dir:
        use_clean_set(root, arguments.input_dir)
    if arguments.mode in ("equivariance", "all"):
        print(f"equivariance: {len(write_transforms(root, arguments.seed))} transformations")
    if arguments.mode in ("noise", "all"):
        for level in arguments.noise_levels:
            count = write_noise(root, level, arguments.resolution, arguments.seed, workers, show_progress=True)
            print(f"noise {level:g}: {count} images")


if __name__ == "__main__":
    run_command(main)
