"""Cut the photographs of scikit-image and scikit-learn into training shards and held-out evaluation crops."""

from __future__ import annotations

import argparse
import json

from common.command import run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", required=True, help="gets shards/, heldout/ and photographs.json")
    parser.add_argument(
        "--held-out", default="chelsea,flower", help="photographs to evaluate on (default: %(default)s)"
    )
    parser.add_argument("--stored-size", type=int, default=96, help="side of the stored training crops")
    parser.add_argument("--count", type=int, default=3000, help="training crops (default: %(default)s)")
    parser.add_argument("--shard-size", type=int, default=500, help="crops per shard (default: %(default)s)")
    parser.add_argument("--resolution", type=int, default=64, help="side of the evaluation crops")
    parser.add_argument("--held-out-count", type=int, default=64, help="evaluation crops (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="key of every draw (default: %(default)s)")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse_arguments()
    from tqdm import tqdm

    from data.photographs import CropRecipe, build_photographs, parse_names

    recipe = CropRecipe(
        held_out=parse_names(arguments.held_out),
        stored_size=arguments.stored_size,
        train_count=arguments.count,
        shard_size=arguments.shard_size,
        resolution=arguments.resolution,
        held_out_count=arguments.held_out_count,
        seed=arguments.seed,
    )
    with tqdm(total=recipe.train_count + recipe.held_out_count, unit="crop", leave=False) as bar:
        result = build_photographs(arguments.output_dir, recipe, lambda done, total: bar.update(done - bar.n))
    index = json.loads(result.index_path.read_text(encoding="utf-8"))
    for split in ("training", "held out"):
        entries = [entry for entry in index["photographs"] if entry["split"] == split]
        crops = sum(entry["crops"] for entry in entries)
        print(f"{split}: {crops} crops of {len(entries)} photographs ({', '.join(e['name'] for e in entries)})")
    print(f"{'reused' if result.reused else 'wrote'} {result.index_path}")


if __name__ == "__main__":
    run_command(main)
