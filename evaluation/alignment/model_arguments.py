"""Command-line flags of the kinds of models: one sub-command per kind. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.config import Source, build, parse_yaml
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
    for name in ("layers", "parts"):
        if "all" in values.get(name, ()):
            values[name] = "all"
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


def _add_diffusion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder, run folder or file of the reference")
    parser.add_argument(
        "--latents", required=True, help="what prefetch.py wrote, with latents_stats.pt of the diffusion training"
    )
    for flag, example in (("--lightningdit", "LightningDiT-XL/1"), ("--reg", "SiT-XL/1")):
        parser.add_argument(
            flag,
            nargs="+",
            action=_Shape,
            metavar="KEY=VALUE",
            help=f"shape of the network in such a file, e.g. model_type={example}; the rest as published",
        )
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights (default: ema)")
    parser.add_argument(
        "--parts", nargs="+", default=["all"], help="embedder, block_0, projector_0, final_layer, ... (default: all)"
    )
    parser.add_argument(
        "--timesteps", nargs="+", type=float, default=[0.5], help="shares of noise, 0 to 1 (default: 0.5)"
    )
    parser.add_argument("--use-label", action="store_true", help="tell the network the classes, not the null class")
    parser.add_argument(
        "--latent-multiplier", type=float, default=1.0, help="after normalisation, as in the training (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="key of the noise (default: 0)")


class _Shape(argparse.Action):
    """`key=value ...` as a section of a configuration; values are read as YAML."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        shape = {}
        for item in values:
            key, equals, text = item.partition("=")
            if not equals:
                parser.error(f"{option_string}: found {item!r}, expected key=value, such as depth=12")
            shape[key] = parse_yaml(text, f"{option_string} {key}")
        setattr(namespace, self.dest, shape)


def _add_posterior(parser: argparse.ArgumentParser, latent: str) -> None:
    parser.add_argument(
        "--latent", choices=("mode", "sample"), default=latent, help=f"of the posterior (default: {latent})"
    )
    parser.add_argument("--seed", type=int, default=0, help="key of the posterior noise (default: 0)")


_FLAGS = {
    "vfm": _add_vfm,
    "tokenizer": _add_tokenizer,
    "autoencoder": _add_autoencoder,
    "diffusion": _add_diffusion,
}
