"""Tokens drawn one after the other: guidance, filtered distributions, draws keyed by sample.

B images, N tokens of an image, V codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.errors import UserError
from networks.ar.config import TokenSamplingConfig
from networks.ar.gpt import GPT

CHUNK = 64  # positions; so much of the caches is read at least, and a compiled step is made for each multiple

Step = Callable[..., Tensor]


def token_probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The distribution that a token is drawn from, for logits [..., V].

    Args:
        temperature: divides the logits; at least 1e-5 does.
        top_k: codes below the k-th largest logit drop out, those equal to it stay; 0: all stay.
        top_p: then, from the likeliest on, codes drop out once those before have more than this probability.
    """
    logits = logits / max(temperature, 1e-5)
    if top_k > 0:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits.softmax(-1)


def draw_tokens(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The code at which the cumulative probability passes a uniform draw.

    Args:
        probabilities: [B, V].
        uniform: [B] in [0, 1), float64.

    Returns: int64 [B]; codes without probability are never drawn. What is drawn where probabilities are not finite is
        some code.
    """
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp_max(probabilities.shape[-1] - 1)


@torch.no_grad()
def generate_tokens(
    network: GPT, labels: Tensor, uniform: Tensor, config: TokenSamplingConfig, step: Step | None = None
) -> Tensor:
    """Tokens of images of these classes.

    Guidance computes u + s (c - u) of the logits c of the class and u of the null class.

    Args:
        network: in eval mode.
        labels: int64 [B].
        uniform: a draw for every token, float64 [B, n] in [0, 1); the first n tokens are made, usually all N.
        step: in place of `network.step`, the same compiled.

    Returns: int64 [B, n].
    Raises: UserError if guidance is asked for and the network has no null class, or if logits are not finite.
    """
    assert not network.training, "dropout would change the samples"
    step = step or network.step
    images, count = uniform.shape
    guided = config.guided_tokens(count)
    rows = labels
    if guided:
        rows = torch.cat([labels, torch.full_like(labels, network.null_label)])
    caches = network.new_caches(len(rows))
    tokens = labels.new_zeros(images, count)
    latest = torch.zeros_like(rows)
    finite = torch.ones((), dtype=torch.bool, device=labels.device)  # asked once, for each answer waits for the device
    for position in range(count):
        if position == guided and len(rows) > images:  # what follows is conditional alone
            rows, latest, caches = labels, latest[:images], [cache.first(images) for cache in caches]
        length = min(-(-(position + 1) // CHUNK) * CHUNK, network.config.block_size)
        logits = step(latest, rows, caches, torch.tensor([position], device=labels.device), length)
        finite &= logits.isfinite().all()
        if len(rows) > images:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + config.cfg_scale * (conditional - unconditional)
        probabilities = token_probabilities(logits, config.temperature, config.top_k, config.top_p)
        greedy = not config.sample_logits
        drawn = probabilities.argmax(-1) if greedy else draw_tokens(probabilities, uniform[:, position])
        tokens[:, position] = drawn
        latest = drawn.repeat(len(rows) // images)
    if not finite:
        raise UserError("the logits of tokens are not finite; check the weights, or sample in fp32.")
    return tokens


def compiled_step(network: GPT) -> Step:
    """`network.step`, compiled once for every multiple of `CHUNK` that is read of the caches."""
    return torch.compile(network.step, fullgraph=True, dynamic=False)
