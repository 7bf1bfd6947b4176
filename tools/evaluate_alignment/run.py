"""Run a whole alignment analysis: extract features, score them under every condition, write the report.

torchrun --standalone --nproc_per_node=1 tools/evaluate_alignment/run.py --config examples/alignment.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, help="YAML: models, conditions, reference; see examples/alignment.yaml"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the YAML")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    from evaluation.alignment.config import load_alignment_config

    config = load_alignment_config(arguments.config, arguments.set)
    from common import distributed
    from configs.schema import load_tokenizer_config
    from evaluation.alignment.analysis import extract_models, write_analysis

    with distributed.joined(config.device) as device:
        outputs = extract_models(config, device, load_tokenizer_config)
        is_first = distributed.rank() == 0
    if is_first:
        write_analysis(config, outputs, device)
        print(f"report: {(Path(config.output_dir) / 'report.html').resolve()}")


if __name__ == "__main__":
    run_command(main)
