"""Compute the tokens of REG's target encoders once, on the CPU, one GPU or many (docs/diffusion.md).

A training then reads them (data.features_path) and needs neither the images nor the encoders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML of the run: names the latents and the target encoders")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", dest="overrides")
    parser.add_argument("--output-dir", required=True, help="empty, or what an interrupted run has left")
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="of the stored tokens (default: float16)",
    )
    parser.add_argument("--batch-size-per-gpu", type=int, default=64, help="images per batch (default: 64)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parsed = parser.parse_args(arguments)
    if parsed.batch_size_per_gpu < 1:
        parser.error(f"--batch-size-per-gpu: found {parsed.batch_size_per_gpu}, expected at least 1")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from configs.reg import REGExperiment
    from configs.schema import load_config, of_kind

    config = of_kind(load_config(arguments.config, arguments.overrides), REGExperiment)
    import torch

    from common import distributed
    from data.reg_latents import open_reg
    from evaluation.diffusion.target_tokens import write_target_tokens
    from networks.diffusion.target_features import load_target_encoders

    with distributed.joined(arguments.device) as device:
        source = open_reg(config.data.path, config.data.image_folder, config.data.vae_folder)
        names = config.target.vfm_names
        summary = write_target_tokens(
            load_target_encoders(names, config.network.tokens_per_side()).to(device),
            names,
            source,
            Path(arguments.output_dir),
            dtype=getattr(torch, arguments.dtype),
            batch_size=arguments.batch_size_per_gpu,
            device=device,
        )
        if distributed.rank() == 0:
            there = f", {summary.kept} were there already" if summary.kept else ""
            print(f"{arguments.output_dir}: tokens of {summary.written} images{there}")


if __name__ == "__main__":
    run_command(main)
