"""List the keys of all images whose shorter side is at least N pixels (a key list for data.filter_keys_path).

    python imagenet_info/scan_keys.py --data-path imagenet/train --min-side 256 \\
        --output imagenet_info/imagenet_train_hr_256_indices.txt

Only image headers are read.
"""

from __future__ import annotations

import argparse
import sys


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", required=True, help="folder of shards, image folder or .zip file")
    parser.add_argument("--source", choices=("webdataset", "folder", "zip"), default="webdataset", help="what it is")
    parser.add_argument("--min-side", type=int, default=256, help="shorter side in pixels (default: %(default)s)")
    parser.add_argument("--output", required=True, help="key list to write: .txt (one per line) or .json")
    arguments = parser.parse_args()
    if not arguments.output.lower().endswith((".txt", ".json")):
        parser.error("--output must end in .txt or .json")
    return arguments


def main() -> int:
    """Scan, write the list and print the counts."""
    arguments = parse_arguments()
    from common.errors import UserError
    from data.config import DataConfig
    from data.keys import write_key_list
    from data.scan import scan_large_images
    from data.sources import build_source

    try:
        source = build_source(DataConfig(source=arguments.source, path=arguments.data_path), seed=0)
        result = scan_large_images(source, arguments.min_side, progress=sys.stderr.isatty())
        write_key_list(arguments.output, result.keys)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    problems = source.report.problems + result.bad
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(
        f"{len(result.keys)} of {result.scanned} images have a shorter side of at least {arguments.min_side} pixels; "
        f"{len(problems)} problems; keys written to {arguments.output}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
