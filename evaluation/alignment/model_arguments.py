"""Command-line flags of the kinds of models: one sub-command per kind. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.config import Source, build
from evaluation.alignment.config import SECTION_CLASSES, ModelSection


def add_model_parsers(
    parser: argparse.ArgumentParser, kinds: Sequence[str], latent: str = "mode"
) -> list[argparse.ArgumentParser]:
    """Add a sub-command for each of these kinds; `section_of` reads what was given.

    Args:
        latent: the default of --latent.
    """
    choices = parser.add_subparsers(dest="kind", required=True, metavar=f"{{{','.join(kinds)}}}")
    parsers = []
    for kind in kinds:
        section = SECTION_CLASSES[kind]
        sub = choices.add_parser(kind, help=(section.__doc__ or "").splitlines()[0], description=section.__doc__)
        _FLAGS[kind](sub)
        if "latent" in section.model_fields:
            _add_posterior(sub, latent)
        parsers.append(sub)
    return parsers


def section_of(arguments: argparse.Namespace) -> ModelSection:
    """The model's section of a configuration. Raises: ConfigError for values that are out of range."""
    section = SECTION_CLASSES[arguments.kind]
    values = {name: getattr(arguments, name) for name in section.model_fields}
    if "all" in values.get("layers", ()):
        values["layers"] = "all"
    return build(section, Source("command line", values))


def _layer(text: str) -> int | str:
    return text if text == "all" else int(text)


def _add_vfm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vfm-name", required=True, help="folder or hub id, or name in timm")
    parser.add_argument(
        "--layers", nargs="+", type=_layer, default=[-1], help="numbers, or all (default: -1, the last)"
    )
    parser.add_argument("--pool", choices=("mean", "summary"), default="mean", help="over tokens, or its own summary")
    parser.add_argument("--scale-factor", type=float, default=1.0, help="resize images by this before the model")
    parser.add_argument("--family", help="encoder family (default: told from its config or name)")
    parser.add_argument("--revision", help="hub revision (default: the newest)")


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vae-pth", required=True, help="checkpoint folder, run folder or reference .pth")
    parser.add_argument("--use-config", help="YAML of the model; not needed if the checkpoint carries it")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights (default: ema)")


def _add_autoencoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", required=True, help="folder with config.json and weights")
    parser.add_argument("--apply-scaling", action="store_true", help="multiply latents by its scaling_factor")


def _add_posterior(parser: argparse.ArgumentParser, latent: str) -> None:
    parser.add_argument(
        "--latent", choices=("mode", "sample"), default=latent, help=f"of the posterior (default: {latent})"
    )
    parser.add_argument("--seed", type=int, default=0, help="key of the posterior noise (default: 0)")


_FLAGS = {"vfm": _add_vfm, "tokenizer": _add_tokenizer, "autoencoder": _add_autoencoder}
