"""Write the labels of sampled latents by image name, as decode_latents_to_images.py names the images. Needs no GPU."""

from __future__ import annotations

import argparse
import os
import sys

from common.command import run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input-dir", required=True, help="folder of *.safetensors shards with latents and labels")
    parser.add_argument("--output-json", required=True, help="gets image name -> label_id and class_name")
    parser.add_argument(
        "--class-index-json", required=True, help="class index -> text (imagenet_info/imagenet_1k_cls_to_text.json)"
    )
    parser.add_argument("--world-size", type=int, default=1, help="as for decode_latents_to_images.py (default: 1)")
    parser.add_argument("--max-images-per-gpu", type=int, help="as for decode_latents_to_images.py")
    parser.add_argument("--skip-bad-shards", action="store_true", help="go on without shards that cannot be read")
    parsed = parser.parse_args(arguments)
    for name in ("world_size", "max_images_per_gpu"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: found {value}, expected at least 1")
    return parsed


def main() -> int:
    arguments = parse_arguments()
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process is enough
        return 0
    from common.files import write_json_atomically
    from data.labels import read_class_texts
    from data.sample_shards import label_records, number_samples, open_samples

    opened = open_samples(arguments.input_dir, arguments.skip_bad_shards)
    samples = number_samples(opened.shards, arguments.world_size, arguments.max_images_per_gpu)
    records = label_records(samples, read_class_texts(arguments.class_index_json))
    write_json_atomically(arguments.output_json, records)
    print(f"{len(records)} labels of {len(samples)} images written to {arguments.output_json}")
    for problem in opened.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 1 if opened.problems else 0


if __name__ == "__main__":
    run_command(main)
