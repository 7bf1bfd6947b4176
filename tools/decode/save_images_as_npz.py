"""Put images of one size into an .npz file that ADM's evaluator reads: arr_0, uint8 [N, H, W, 3]."""

from __future__ import annotations

import argparse

from common.command import run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input-dir", required=True, help="folder of images")
    parser.add_argument("--output-npz", required=True, help="file to write")
    parser.add_argument("--num", type=int, required=True, help="the first so many images by name (customary: 50000)")
    parser.add_argument("--shuffle-seed", type=int, help="take them in a random order that this number decides")
    parsed = parser.parse_args(arguments)
    if parsed.num < 1:
        parser.error(f"--num: found {parsed.num}, expected at least 1")
    if not parsed.output_npz.endswith(".npz"):
        parser.error(f"--output-npz: found {parsed.output_npz}, expected a name that ends in .npz")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from evaluation.image_batches import save_as_npz

    save_as_npz(arguments.input_dir, arguments.output_npz, arguments.num, arguments.shuffle_seed, show_progress=True)
    print(f"{arguments.num} images written to {arguments.output_npz}")


if __name__ == "__main__":
    run_command(main)
