"""The command line that the tools share which go through a labelled data set once. Importing it costs no torch."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from data.skips import Skip
    from evaluation.prefetch.format import PrefetchFormat
    from evaluation.prefetch.run import PrefetchOptions
    from networks.checkpoint.folder import Shape

_COUNTS = (
    "resolution",
    "batch_size_per_gpu",
    "max_images_per_gpu",
    "images_per_shard",
    "num_workers",
    "expected_count",
)


def encoding_parser(description: str | None, images_per_shard: int) -> argparse.ArgumentParser:
    """A parser with what every tool takes that encodes a data set.

    Args:
        images_per_shard: the default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output-dir", required=True, help="empty, or what an interrupted run has left")
    parser.add_argument("--vae-pth", required=True, help="checkpoint folder, run folder or reference .pth")
    parser.add_argument("--use-config", help="YAML of the model; may be left out if the checkpoint carries it")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights (default: ema)")
    parser.add_argument("--resolution", type=int, help="side of the ADM centre crops (default: the model's)")
    parser.add_argument("--batch-size-per-gpu", type=int, default=64, help="images per batch (default: 64)")
    parser.add_argument(
        "--images-per-shard",
        type=int,
        default=images_per_shard,
        help=f"images after which a part is finished, rounded up to whole batches (default: {images_per_shard})",
    )
    parser.add_argument("--seed", type=int, default=0, help="key of all draws (default: 0)")
    parser.add_argument(
        "--max-skip-fraction", type=float, default=0.01, help="share of images that may be unusable (default: 0.01)"
    )
    parser.add_argument("--num-workers", type=int, default=4, help="threads that read and decode (default: 4)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    return parser


def prefetch_parser(description: str | None, images_per_shard: int) -> argparse.ArgumentParser:
    """`encoding_parser` with what prefetching takes besides."""
    parser = encoding_parser(description, images_per_shard)
    parser.add_argument("--data-path", required=True, help="folder of *.tar shards with classes, or one shard")
    parser.add_argument("--max-images-per-gpu", type=int, help="only the first so many images of each rank's share")
    parser.add_argument("--expected-count", type=int, help="fail unless so many images are stored in the end")
    return parser


def latent_parser(description: str | None, images_per_shard: int) -> argparse.ArgumentParser:
    """`prefetch_parser` for formats with statistics of latents."""
    parser = prefetch_parser(description, images_per_shard)
    parser.add_argument(
        "--stats",
        choices=("all", "sample10k"),
        default="all",
        help="statistics of all latents, or of 10,000 unmirrored ones as in the reference (default: all)",
    )
    return parser


def parse_checked(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends with code 2 for numbers that make no sense."""
    parsed = parser.parse_args(arguments)
    for name in _COUNTS:
        value = getattr(parsed, name, None)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: found {value}, expected at least 1")
    if not 0 <= parsed.max_skip_fraction <= 1:
        parser.error(f"--max-skip-fraction: found {parsed.max_skip_fraction:g}, expected a number from 0 to 1")
    return parsed


@dataclass(frozen=True)
class Session:
    """A tokenizer on its device, and how a data set is gone through."""

    model: nn.Module
    device: torch.device
    options: PrefetchOptions


@contextlib.contextmanager
def encoding_session(arguments: argparse.Namespace, config: Shape | None, **options: Any) -> Iterator[Session]:
    """Join the other ranks and load the tokenizer.

    Args:
        arguments: of `encoding_parser`.
        config: shape of the tokenizer, if its checkpoint does not say it.
        options: of `PrefetchOptions`, besides those that the arguments give.
    """
    from common import distributed
    from evaluation.prefetch.run import PrefetchOptions
    from networks.checkpoint import load_tokenizer

    with distributed.joined(arguments.device) as device:
        model = load_tokenizer(arguments.vae_pth, config, device=device, weights=arguments.weights)
        resolution = arguments.resolution or model.config.img_resolution
        model.require_image_size(resolution, resolution)
        yield Session(
            model,
            device,
            PrefetchOptions(
                resolution=resolution,
                batch_size=arguments.batch_size_per_gpu,
                rows_per_file=arguments.images_per_shard,
                max_skip_fraction=arguments.max_skip_fraction,
                workers=arguments.num_workers,
                **options,
            ),
        )


def run_prefetch(
    arguments: argparse.Namespace,
    config: Shape | None,
    make_format: Callable[[int], PrefetchFormat],
) -> None:
    """Load the tokenizer, prefetch on all ranks, and say what was done.

    Args:
        arguments: of `prefetch_parser`.
        config: shape of the tokenizer, if its checkpoint does not say it.
        make_format: the format for images of a side in pixels.
    """
    from common import distributed
    from evaluation.prefetch.run import prefetch

    options = {
        "max_images_per_rank": arguments.max_images_per_gpu,
        "expected_count": arguments.expected_count,
    }
    with encoding_session(arguments, config, **options) as session:
        kind = make_format(session.options.resolution)
        summary = prefetch(
            session.model, arguments.data_path, arguments.output_dir, kind, session.options, session.device
        )
        if distributed.rank() == 0:
            there = f", of which {summary.kept} were there already" if summary.kept else ""
            print(f"{arguments.output_dir}: {summary.written} of {summary.found} images{there}")
            print_skips(summary.skips)


def print_skips(skips: tuple[Skip, ...]) -> None:
    """Say on stderr what was left out, by kind and shard."""
    from data.skips import count_by_kind_and_shard

    for reason, shards in count_by_kind_and_shard(skips).items():
        for shard, count in shards.items():
            print(f"left out: {shard}: {reason} ({count})", file=sys.stderr)
