"""Have samples of digits judged by a classifier that knows the real scans (docs/diffusion.md).

Writes results.json, and for each set of samples a picture: every other row has the nearest training scans of the row
above it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command

ROWS = 4


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reconstructions", required=True, type=Path, help="reconstructed held-out scans")
    parser.add_argument(
        "--samples",
        required=True,
        action="append",
        type=_named_folder,
        metavar="NAME=FOLDER",
        help="decoded samples and what to call them; may be repeated",
    )
    parser.add_argument("--output-dir", required=True, type=Path, help="gets results.json and NAME.png")
    return parser.parse_args(arguments)


def _named_folder(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder) or "/" in name:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=FOLDER")
    return name, Path(folder)


def main() -> None:
    arguments = parse_arguments()
    import torch

    from common.files import write_json_atomically
    from data.digits import CLASSES, load_digit_scans
    from evaluation.digits import Judge, first_of_each_class, read_reconstructions, read_samples, score_digits
    from trainer.snapshots import save_grid

    samples = {name: read_samples(folder) for name, folder in arguments.samples}
    split = load_digit_scans()
    judge = Judge(split.training)
    results = score_digits(judge, split, read_reconstructions(arguments.reconstructions), samples)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json_atomically(arguments.output_dir / "results.json", results)
    for name, drawn in samples.items():
        shown = first_of_each_class(drawn, ROWS)
        rows = (torch.from_numpy(images).movedim(-1, 1) for images in (shown, judge.nearest(shown).images))
        save_grid(*rows, arguments.output_dir / f"{name}.png", columns=CLASSES)
    print_table(results)


def print_table(results: dict) -> None:
    rows = {name.replace("_", " "): results[name] for name in results if name.startswith("held_out")}
    print(f"{'':32}{'agreement':>10}{'95 % interval':>18}{'nearest scan':>14}")
    for name, score in (rows | results["samples"]).items():
        found = score["agreement"]
        interval = f"{found['low']:.1%} to {found['high']:.1%}"
        print(f"{name:32}{found['share']:>10.1%}{interval:>18}{score['nearest_distance']:>14.3f}")


if __name__ == "__main__":
    run_command(main)
