"""The command line of the tool that samples autoregressive models. Importing it costs no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.sampling.command import parse_checked, sampling_parser, write_requested

if TYPE_CHECKING:
    import torch

    from data.token_kind import TokenKind
    from evaluation.sampling.folder import SampleMaker
    from networks.ar.config import GPTConfig, TokenSamplingConfig

_KEYS = ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p", "precision", "compile")


def parse_sampling_arguments(description: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends with code 2 for what makes no sense. Flags of the section `sample` join `--set`."""
    parser = sampling_parser(description, labels="balanced")
    parser.add_argument("--cfg-scale", type=float, help="strength of guidance; up to 1: none")
    parser.add_argument("--cfg-interval", type=int, help="guide so many + 2 tokens only; -1: all")
    parser.add_argument("--temperature", type=float, help="divides the logits")
    parser.add_argument("--top-k", type=int, help="draw from the so many likeliest codes; 0: from all")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest codes that together have this probability")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of the weights")
    parser.add_argument("--compile", action="store_true", default=None, help="compile the step of a single token")
    parsed = parse_checked(parser, arguments)
    given = {key: getattr(parsed, key) for key in _KEYS if getattr(parsed, key) is not None}
    parsed.overrides = parsed.overrides + [f"sample.{key}={str(value).lower()}" for key, value in given.items()]
    return parsed


def stored_config(checkpoint: str) -> dict[str, Any]:
    """The configuration of the run that wrote a checkpoint or run folder.

    Raises: CheckpointError if there is none, or it is not of an autoregressive model.
    """
    from networks.ar.folder import read_gpt_folder

    return read_gpt_folder(checkpoint).manifest["config"]


def run_sampling(arguments: argparse.Namespace, network_config: GPTConfig, sampling: TokenSamplingConfig) -> None:
    """Load the network, sample on all ranks, and say what was done.

    Args:
        arguments: of `parse_sampling_arguments`.
    Raises: UserError for what a user can put right.
    """
    from evaluation.ar.samples import TokenSamples
    from networks.ar.folder import load_gpt_weights
    from networks.ar.gpt import GPT

    def make(device: torch.device) -> SampleMaker:
        network = GPT(network_config)
        load_gpt_weights(network, arguments.checkpoint, arguments.weights)
        network = network.to(device).eval().requires_grad_(False)
        return TokenSamples(network, sampling, _kind(arguments.checkpoint, network_config))

    write_requested(arguments, make)


def _kind(checkpoint: str, network: GPTConfig) -> TokenKind:
    """Whose tokens a checkpoint generates; a file does not say which tokenizer's."""
    from data.token_kind import TokenKind
    from networks.ar.folder import read_gpt_folder

    if Path(checkpoint).is_dir():
        folder = read_gpt_folder(checkpoint)
        return TokenKind.from_json(folder.model["tokens"], str(folder.path / "config.json"))
    return TokenKind(network.vocab_size, (network.grid_side(), network.grid_side()), None)
