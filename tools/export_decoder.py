"""Export the decoder of a tokenizer for one image size and any batch size, as a PyTorch program or as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command

FORMATS = (".pt2", ".onnx")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae-pth", required=True, help="checkpoint folder, run folder or reference .pth")
    parser.add_argument("--use-config", help="YAML of the model; may be left out if the checkpoint carries it")
    parser.add_argument("--output", required=True, type=Path, help="file to write: .pt2 (torch.export) or .onnx")
    parser.add_argument("--height", type=int, help="of the images, in pixels (default: the model's)")
    parser.add_argument("--width", type=int, help="of the images, in pixels (default: the model's)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights (default: ema)")
    parsed = parser.parse_args(arguments)
    if parsed.output.suffix not in FORMATS:
        parser.error(f"--output: found {str(parsed.output)!r}, expected a name that ends with {' or '.join(FORMATS)}")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from common.files import write_atomically
    from configs.schema import load_tokenizer_config
    from networks.checkpoint import load_tokenizer
    from networks.export import export_decoder, save_onnx, save_program

    config = load_tokenizer_config(arguments.use_config)
    tokenizer = load_tokenizer(arguments.vae_pth, config, weights=arguments.weights)
    side = tokenizer.config.img_resolution
    height, width = arguments.height or side, arguments.width or side
    program = export_decoder(tokenizer, height, width)

    def write(path: Path) -> None:
        if arguments.output.suffix == ".onnx":
            save_onnx(program, path)
        else:
            save_program(program, path, tokenizer)

    write_atomically(arguments.output, write)
    c, h, w = tokenizer.latent_shape(height, width)
    print(f"{arguments.output}: latent [batch, {c}, {h}, {w}] -> images [batch, 3, {height}, {width}] in [-1, 1]")


if __name__ == "__main__":
    run_command(main)
