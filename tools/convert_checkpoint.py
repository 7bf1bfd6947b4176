"""Convert checkpoints between the reference's .pth files and this project's folders.

    python tools/convert_checkpoint.py --input network-snapshot-00044000.pth --use-config FILE.yaml --output FOLDER
    python tools/convert_checkpoint.py --input runs/my_run --output FOLDER

A .pth becomes a folder that every command here takes (--vae-pth, training.init_from); a folder or run becomes
network-snapshot-<kimg>.pth. Nothing is overwritten, no file is unpickled, and the licence of the weights goes along.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="a .pth of the reference; or a checkpoint or run folder")
    parser.add_argument("--output", required=True, help="folder to make; or a .pth, or a folder to put one in")
    parser.add_argument("--use-config", help="YAML of the model, for a .pth: of this project or of the reference")
    parser.add_argument("--licence", help="licence of the input's weights (default: what the input records)")
    parser.add_argument(
        "--include-encoder",
        action=argparse.BooleanOptionalAction,
        help="write the frozen encoder's weights, too (default: in a .pth, as the reference does; not in a folder, "
        "which refers to them by name and hash)",
    )
    arguments = parser.parse_args()
    if not Path(arguments.input).exists():
        parser.error(f"--input: {arguments.input} does not exist; give a .pth, or a checkpoint or run folder")
    is_folder = Path(arguments.input).is_dir()
    if is_folder and arguments.use_config:
        parser.error("--use-config: a folder carries its configuration; leave it out")
    if not is_folder and not arguments.use_config:
        parser.error("--use-config: a .pth carries no configuration; give one")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    from configs.schema import load_tokenizer_config
    from networks.checkpoint.convert import folder_to_reference, reference_to_folder

    if arguments.use_config:
        config = load_tokenizer_config(arguments.use_config)
        include_encoder = arguments.include_encoder is True
        report(reference_to_folder(arguments.input, arguments.output, config, arguments.licence, include_encoder))
    else:
        include_encoder = arguments.include_encoder is not False
        report(folder_to_reference(arguments.input, arguments.output, arguments.licence, include_encoder))


def report(converted) -> None:
    """Say what was written."""
    kinds = "EMA and raw weights" if converted.has_raw else "EMA weights"
    encoder = f"{converted.encoder} entries" if converted.encoder else "referred to, not copied"
    print(f"{converted.path}: {kinds} of {converted.weights} entries each")
    print(f"frozen encoder: {encoder}")
    print(f"discriminators: {converted.discriminator or 'no'} entries")
    print(f"noise maps: {'yes, needs legacy: true' if converted.has_noise else 'no, needs legacy: false'}")
    print(f"weights derive from {converted.origin or 'no others; their licence is yours to choose'}")


if __name__ == "__main__":
    run_command(main)
