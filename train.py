"""Train a tokenizer or a diffusion model.

    torchrun --standalone --nproc_per_node=K train.py --config FILE [--set section.key=value ...]

Starts a run, or goes on from its newest complete checkpoint. One process, or many under torchrun.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys

from common.command import run_command
from configs.schema import LoadedConfig, add_config_arguments, dump, load_config


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--dry-run", action="store_true", help="print shapes, parameters and estimates, and stop")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    only_looking = arguments.print_config or arguments.dry_run
    loaded = load_config(arguments.config, arguments.overrides, not only_looking, arguments.presets)
    if int(os.environ.get("RANK", 0)) == 0:
        _tell(loaded)
    if arguments.print_config:
        import yaml

        print(yaml.safe_dump(dump(loaded.config), sort_keys=False), end="")
    if arguments.dry_run:
        from trainer.launch import describe

        print(describe(loaded.config))
    if only_looking:
        return 0

    # The libraries consist of a million objects that stay. To look for garbage among them takes a second at the start,
    # and again whenever the collector comes by.
    gc.disable()
    from trainer.launch import launch

    gc.freeze()
    gc.enable()
    return launch(loaded.config)


def _tell(loaded: LoadedConfig) -> None:
    """Notes and warnings about the configuration, on stderr."""
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    if warnings := loaded.warnings():
        print(f"warning: {warnings}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
