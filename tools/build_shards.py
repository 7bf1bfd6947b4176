"""Build WebDataset shards from a folder of images; the class of an image is its sub-folder.

    python tools/build_shards.py --input-dir photos --output-dir shards --shard-size 1000

Equal input gives shards with equal bytes. Exit code 1 if some images cannot be read, unless --skip-bad is given.
"""

from __future__ import annotations

import argparse
import sys


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input-dir", required=True, help="folder of images, searched recursively")
    parser.add_argument("--output-dir", required=True, help="folder for the shards; must not hold shards yet")
    parser.add_argument("--shard-size", type=int, default=1000, help="samples per shard (default: %(default)s)")
    parser.add_argument(
        "--image-format",
        choices=("keep", "jpeg", "png"),
        default="keep",
        help="keep the files (formats that shards cannot hold become PNG), or encode all anew (default: %(default)s)",
    )
    parser.add_argument(
        "--labels", help='JSON with classes in place of sub-folders: {"labels": [[relative name, class index], ...]}'
    )
    parser.add_argument("--prefix", default="shard", help="first part of the shards' names (default: %(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="exit code 0 even if some images cannot be read")
    arguments = parser.parse_args()
    if arguments.shard_size < 1:
        parser.error("--shard-size must be at least 1")
    return arguments


def main() -> int:
    """Build the shards and print what was written."""
    arguments = parse_arguments()
    from common.errors import UserError
    from data.write_shards import shards_from_folder

    try:
        report = shards_from_folder(
            arguments.input_dir,
            arguments.output_dir,
            shard_size=arguments.shard_size,
            image_format=arguments.image_format,
            labels_path=arguments.labels,
            prefix=arguments.prefix,
            progress=sys.stderr.isatty(),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for bad in report.bad:
        print(f"left out: {bad}", file=sys.stderr)
    print(
        f"{report.written.samples} samples in {len(report.written.shards)} shards, {len(report.class_names)} classes, "
        f"{len(report.bad)} images left out; read back and compared; sha256 {report.digest}"
    )
    return 1 if report.bad and not arguments.skip_bad else 0


if __name__ == "__main__":
    sys.exit(main())
