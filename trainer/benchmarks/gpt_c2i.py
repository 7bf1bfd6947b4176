"""What is timed of an autoregressive model: a training step, and sampling with and without a cache.

N tokens of an image. Without a cache, each token takes a pass of the whole sequence in front of it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from common.random import torch_generator
from data.token_kind import TokenKind
from data.tokens import TokenBatch
from evaluation.ar.samples import TokenSamples, token_draws
from trainer.benchmarks.plan import Call, FigureRule, Plan, Request, measurable_network, ratio, training_calls
from trainer.gpt_dry_run import training_pass
from trainer.systems.gpt_c2i import GPTSystem

if TYPE_CHECKING:
    from configs.gpt_c2i import GPTExperiment

PASSES = 4  # lengths of which whole passes are timed
ALL, HALF, WHOLE_PASSES = "sample", "sample_half", "recompute"


def plan(request: Request) -> Plan:
    """Sampling is by the configuration's `sample` section, of a batch of a training step."""
    left_out = {
        "data": "tokens are made up, also where a run makes them of images: the tokenizer has its own benchmark"
    }
    config: GPTExperiment = measurable_network(request, GPTSystem.build_network, training_pass, left_out)
    c, count, device = config.network, config.training.batch_size, request.device
    kind = TokenKind(c.vocab_size, (c.grid_side(), c.grid_side()), None)
    system = GPTSystem(config, device, kind)
    tokens = torch.randint(c.vocab_size, (count, c.block_size), generator=torch_generator(0, "benchmark batch"))
    batch = TokenBatch(tokens, torch.arange(count) % c.num_classes, range(count))
    return Plan(
        parts=_sampling(system, batch) | {"step": training_calls(config, system, batch, device, left_out)["step"]},
        setting={
            "inputs": f"{count} sequence{'s' if count > 1 else ''} of {c.block_size} tokens of {c.vocab_size:,} codes",
            "batch_size": count,
            "precision": config.training.precision,
            "sampling_precision": config.sample.precision,
            "guided": config.sample.cfg_scale > 1,
        },
        left_out=left_out,
        figures=_figures(c.block_size),
    )


def _sampling(system: GPTSystem, batch: TokenBatch) -> dict[str, Call]:
    """All tokens and the first half of them with the cache, and all of them without."""
    c, sample, device = system.config.network, system.config.sample, system.device
    network = copy.deepcopy(system.average)  # whose precision may become another one
    sampler = TokenSamples(network, sample, system.kind)
    tokens, labels = batch.tokens.to(device), batch.labels.to(device)
    draws = token_draws(batch.positions, c.block_size, seed=0).to(device)

    def sampled(count: int) -> Call:
        return Call(lambda: sampler.generate(labels, draws[:, :count]), is_compiled=sample.compile)

    # The middles of equal parts of the sequence. As a pass takes more than its share with every token that joins, the
    # sum over them is, if anything, too small.
    lengths = [c.block_size * (2 * n + 1) // (2 * PASSES) for n in range(PASSES)]

    @torch.inference_mode()
    def whole_passes() -> None:
        for length in lengths:
            rows = 2 if length <= sample.guided_tokens(c.block_size) else 1
            network(tokens[:, : length - 1].repeat(rows, 1), labels.repeat(rows))

    return {
        ALL: sampled(c.block_size),
        HALF: sampled(c.block_size // 2),
        WHOLE_PASSES: Call(whole_passes, times=c.block_size / PASSES),
    }


def _figures(tokens: int) -> dict[str, FigureRule]:
    half = tokens // 2
    return {
        "seconds_per_token": FigureRule(lambda s: s[ALL] / tokens, "s", f"of {tokens}, with the cache"),
        "seconds_per_token_of_half": FigureRule(lambda s: s[HALF] / half, "s", f"of {half}, with the cache"),
        **ratio(WHOLE_PASSES, ALL, f"{tokens} tokens without the cache over with it"),
        **ratio(ALL, HALF, f"{tokens} tokens over {half}, with the cache"),
    }
