"""The command line of the tools that sample diffusion models. Importing it costs no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from evaluation.sampling.command import parse_checked, sampling_parser, write_requested

if TYPE_CHECKING:
    import torch

    from data.latents import LatentNormalisation
    from evaluation.diffusion.samplers import Sampler
    from evaluation.sampling.folder import SampleMaker
    from networks.diffusion.transformer import DiffusionTransformer


def parse_sampling_arguments(description: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends with code 2 for what makes no sense."""
    parser = sampling_parser(description, labels="random")
    parser.add_argument(
        "--latents-stats-dir", help="folder of latents_stats.pt (default: the statistics in the checkpoint folder)"
    )
    return parse_checked(parser, arguments)


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
    from evaluation.diffusion.latent_samples import LatentSamples
    from networks.diffusion.folder import load_diffusion_weights

    def make(device: torch.device) -> SampleMaker:
        network = build_network()
        normalisation = _normalisation(arguments, network.config.in_channels, multiplier)
        load_diffusion_weights(network, arguments.checkpoint, arguments.weights)
        return LatentSamples(build_sampler(network.to(device).eval().requires_grad_(False)), normalisation)

    write_requested(arguments, make)


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
