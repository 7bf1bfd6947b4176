"""Write the texts of the ImageNet-1k classes (JSON from class index to text) from timm's ImageNet information.

python imagenet_info/make_cls_to_text.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DEFAULT_OUTPUT = Path(__file__).parent / "imagenet_1k_cls_to_text.json"


def main() -> int:
    """Write the file and print its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(DEFAULT_OUTPUT), help="file to write (default: beside this script)")
    arguments = parser.parse_args()
    from common.files import write_json_atomically
    from data.class_texts import imagenet_class_texts

    texts = imagenet_class_texts()
    write_json_atomically(arguments.output, texts)
    print(f"{len(texts)} class texts written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
