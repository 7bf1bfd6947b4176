"""The command line of the tools that sample diffusion models. Importing it costs no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    from data.latents import LatentNormalisation
    from evaluation.diffusion.samplers import Sampler
    from networks.diffusion.transformer import DiffusionTransformer


def parse_sampling_arguments(description: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends with code 2 for what makes no sense."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder, run folder or file of the reference")
    parser.add_argument("--output-dir", required=True, help="empty, or what an interrupted run has left")
    parser.add_argument("--config", help="YAML of the run; may be left out for a folder, which carries it")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="sample.key=value",
        dest="overrides",
        help="override a key, e.g. sample.cfg_scale=4.0",
    )
    parser.add_argument(
        "--latents-stats-dir", help="folder of latents_stats.pt (default: the statistics in the checkpoint folder)"
    )
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights (default: ema)")
    parser.add_argument("--num-samples", type=int, default=50_000, help="how many (default: 50000)")
    parser.add_argument("--seed", type=int, default=0, help="key of all draws (default: 0)")
    parser.add_argument(
        "--labels",
        choices=("random", "balanced"),
        default="random",
        help="draw each label, as published, or have every class equally often (default: random)",
    )
    parser.add_argument("--classes", type=_numbers, help="only these classes, e.g. 207,360 (default: all)")
    parser.add_argument("--batch-size-per-gpu", type=int, default=64, help="samples per batch (default: 64)")
    parser.add_argument(
        "--samples-per-shard", type=int, default=1000, help="samples after which a file is written (default: 1000)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parsed = parser.parse_args(arguments)
    for name in ("num_samples", "batch_size_per_gpu", "samples_per_shard"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: found {getattr(parsed, name)}, expected at least 1")
    if parsed.config is None and not Path(parsed.checkpoint).is_dir():
        parser.error(f"--checkpoint: {parsed.checkpoint} is no folder; a file carries no configuration, give --config")
    return parsed


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def stored_config(checkpoint: str) -> dict[str, Any]:
    """The configuration of the run that wrote a checkpoint or run folder.

    Raises: CheckpointError if there is none, or it is not of a diffusion model.
    """
    from networks.diffusion.folder import read_diffusion_folder

    return read_diffusion_folder(checkpoint).manifest["config"]


def run_sampling(
    arguments: argparse.Namespace,
    build_network: Callable[[], DiffusionTransformer],
    build_sampler: Callable[[DiffusionTransformer], Sampler],
    multiplier: float = 1.0,
) -> None:
    """Load the network, sample on all ranks, and say what was done.

    Args:
        arguments: of `parse_sampling_arguments`.
        multiplier: of the latents that it was trained on, for statistics that come from elsewhere.
    Raises: UserError for what a user can put right.
    """
    from common import distributed
    from evaluation.diffusion.sample_folder import SampleRequest, write_samples
    from networks.diffusion.folder import load_diffusion_weights

    with distributed.joined(arguments.device) as device:
        network = build_network()
        normalisation = _normalisation(arguments, network.config.in_channels, multiplier)
        load_diffusion_weights(network, arguments.checkpoint, arguments.weights)
        summary = write_samples(
            build_sampler(network.to(device).eval().requires_grad_(False)),
            normalisation,
            arguments.output_dir,
            SampleRequest(arguments.num_samples, arguments.seed, arguments.labels, arguments.classes),
            batch_size=arguments.batch_size_per_gpu,
            samples_per_shard=arguments.samples_per_shard,
            description={"checkpoint": Path(arguments.checkpoint).name, "weights": arguments.weights},
        )
        if distributed.rank() == 0:
            there = f", {summary.kept} were there already" if summary.kept else ""
            print(f"{arguments.output_dir}: {summary.written} samples in {summary.seconds:.1f} s{there}")


def _normalisation(arguments: argparse.Namespace, channels: int, multiplier: float) -> LatentNormalisation:
    """Of the latents that the network was trained on. Raises UserError if nobody states it."""
    import torch

    from data.latents import LatentNormalisation, read_normalisation
    from networks.diffusion.folder import read_diffusion_folder

    if arguments.latents_stats_dir is not None:
        return read_normalisation(arguments.latents_stats_dir, channels, multiplier)
    if not Path(arguments.checkpoint).is_dir():
        raise UserError(
            f"--latents-stats-dir: missing, and {arguments.checkpoint} does not say how its latents were normalised; "
            "give the folder of the latents_stats.pt that it was trained with."
        )
    latents = read_diffusion_folder(arguments.checkpoint).model["latents"]
    mean, std = (torch.tensor(latents[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
    return LatentNormalisation(mean, std, latents["multiplier"])
