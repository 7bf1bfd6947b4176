"""What sampling an autoregressive model costs on this machine, with and without a key-value cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from evaluation.ar.samples import token_draws
from evaluation.cost import seconds_of
from networks.ar.config import GPTConfig, TokenSamplingConfig
from networks.ar.gpt import GPT
from networks.ar.sampling import compiled_step, generate_tokens

LENGTHS = 4  # of sequences whose whole passes are timed


def measure_sampling(
    config: GPTConfig, sampling: TokenSamplingConfig, device: torch.device, images: int, repeats: int
) -> dict[str, Any]:
    """Seconds to sample all tokens of images by random weights, the fastest of some runs.

    `with_cache` and `with_cache_half` are of all tokens and of the first half. `without_cache` is what it would take to
    pass the whole sequence for each token: the mean over passes of some lengths, evenly spread, times the tokens.
    """
    network = GPT(config).to(device).eval().requires_grad_(False)
    step = compiled_step(network) if sampling.compile else network.step
    labels = (torch.arange(images) % config.num_classes).to(device)
    draws = token_draws(range(images), config.block_size, seed=0).to(device)

    def cached(tokens: int) -> float:
        return seconds_of(lambda: generate_tokens(network, labels, draws[:, :tokens], sampling, step), device)

    @torch.no_grad()
    def whole_pass(length: int) -> float:
        tokens = torch.zeros(images, length - 1, dtype=torch.int64, device=device)
        return seconds_of(lambda: network(tokens, labels), device)

    count, lengths = config.block_size, [config.block_size * (n + 1) // LENGTHS for n in range(LENGTHS)]
    cached(count if sampling.compile else 1)  # warm-up, and compilation
    passes = [min(whole_pass(length) for _ in range(repeats)) for length in lengths]
    seconds = {
        "with_cache": min(cached(count) for _ in range(repeats)),
        "with_cache_half": min(cached(count // 2) for _ in range(repeats)),
        "without_cache": count * sum(passes) / len(passes),
    }
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "images": images,
        "tokens": count,
        "parameters": sum(p.numel() for p in network.parameters()),
        "sampling": sampling.model_dump(),
        "seconds": seconds,
        "seconds_per_token": {name: seconds[name] / count for name in ("with_cache", "without_cache")},
        "speed_up": seconds["without_cache"] / seconds["with_cache"],
        "whole_over_half": seconds["with_cache"] / seconds["with_cache_half"],
    }


def as_table(record: Mapping[str, Any]) -> str:
    """A record of `measure_sampling` for people."""
    seconds, count = record["seconds"], record["tokens"]
    scale = record["sampling"]["cfg_scale"]
    return "\n".join(
        [
            f"{record['device']}, {record['threads']} threads; {record['parameters']:,} parameters, {record['images']} "
            f"images, {'guided' if scale > 1 else 'not guided'}",
            f"{count} tokens with cache      {seconds['with_cache']:>10.3f} s",
            f"{count // 2} tokens with cache      {seconds['with_cache_half']:>10.3f} s",
            f"{count} tokens without cache   {seconds['without_cache']:>10.3f} s",
            f"the cache makes it {record['speed_up']:.1f} times as fast",
            f"all tokens take {record['whole_over_half']:.2f} times as long as half of them",
        ]
    )
