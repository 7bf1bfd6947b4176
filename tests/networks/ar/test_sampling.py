"""Drawing tokens: the cache changes nothing, guidance, distributions, draws."""

from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from networks.ar import sampling
from networks.ar.config import TokenSamplingConfig
from networks.ar.gpt import GPT
from networks.ar.sampling import compiled_step, draw_tokens, generate_tokens, token_probabilities
from tests.networks.ar.tiny import gpt

GREEDY = {"sample_logits": False}


def draws(images: int, tokens: int = 16) -> torch.Tensor:
    return torch.rand(images, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def without_cache(
    network: GPT, labels: torch.Tensor, uniform: torch.Tensor, config: TokenSamplingConfig
) -> torch.Tensor:
    """The whole sequence anew for each token."""
    tokens = torch.zeros(len(labels), 0, dtype=torch.int64)
    for position in range(uniform.shape[1]):
        logits = network(tokens, labels)[:, -1]
        if config.cfg_scale > 1 and (config.cfg_interval < 0 or position < config.cfg_interval + 2):
            null = network(tokens, torch.full_like(labels, network.null_label))[:, -1]
            logits = null + config.cfg_scale * (logits - null)
        probabilities = token_probabilities(logits, config.temperature, config.top_k, config.top_p)
        tokens = torch.cat([tokens, draw_tokens(probabilities, uniform[:, position])[:, None]], dim=1)
    return tokens


@pytest.mark.parametrize("chunk", [3, 64])
@pytest.mark.parametrize("network", [{}, {"n_head": 4, "n_kv_head": 2}], ids=["own heads", "shared heads"])
def test_cached_logits_equal_those_of_whole_sequences(network: dict, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(sampling, "CHUNK", chunk)
    model, labels, found = gpt(**network), torch.arange(3), []

    def step(*arguments):
        found.append(model.step(*arguments))
        return found[-1]

    tokens = generate_tokens(model, labels, draws(3), TokenSamplingConfig(cfg_scale=1.0), step)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(found, dim=1), model(tokens[:, :-1], labels), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"cfg_scale": 1.0},
        {"cfg_scale": 2.0},
        {"cfg_scale": 4.0, "cfg_interval": 0},
        {"cfg_scale": 4.0, "cfg_interval": 5, "temperature": 0.8},
        {"cfg_scale": 1.5, "top_k": 5, "top_p": 0.8},
    ],
)
def test_tokens_are_those_drawn_without_a_cache(options: dict) -> None:
    network, labels, config = gpt(), torch.arange(4), TokenSamplingConfig(**options)
    found = generate_tokens(network, labels, draws(4), config)
    assert torch.equal(found, without_cache(network, labels, draws(4), config))
    assert len(found.unique()) > 4


def test_an_interval_guides_the_first_tokens_alone() -> None:
    network, labels = gpt(), torch.arange(4)
    guided, some, free = (
        generate_tokens(network, labels, draws(4), TokenSamplingConfig(cfg_scale=scale, cfg_interval=interval))
        for scale, interval in ((6.0, -1), (6.0, 5), (1.0, -1))
    )
    assert torch.equal(some[:, :7], guided[:, :7]) and not torch.equal(some[:, :7], free[:, :7])
    assert not torch.equal(some[:, 7:], guided[:, 7:])
    enough = TokenSamplingConfig(cfg_scale=6.0, cfg_interval=14)
    assert torch.equal(generate_tokens(network, labels, draws(4), enough), guided)


def test_a_sample_is_the_same_alone_and_among_others() -> None:
    network, labels, config = gpt(), torch.arange(5), TokenSamplingConfig(cfg_scale=2.0)
    together = generate_tokens(network, labels, draws(5), config)
    alone = [generate_tokens(network, labels[i : i + 1], draws(5)[i : i + 1], config) for i in range(5)]
    assert torch.equal(torch.cat(alone), together)


def test_guidance_needs_a_null_class() -> None:
    network = gpt(class_dropout_prob=0.0)
    with pytest.raises(UserError, match="no null class"):
        generate_tokens(network, torch.arange(2), draws(2), TokenSamplingConfig())
    assert generate_tokens(network, torch.arange(2), draws(2), TokenSamplingConfig(cfg_scale=1.0)).shape == (2, 16)


def test_draws_follow_the_probabilities_and_never_leave_them() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = draw_tokens(probabilities.expand(10_000, 6), uniform).bincount(minlength=6)
    assert counts.tolist() == [0, 5000, 0, 3000, 2000, 0]
    edges = torch.tensor([0.0, torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.zeros(())).item()])
    assert draw_tokens(probabilities.expand(2, 6), edges.double()).tolist() == [1, 4]


def test_greedy_tokens_need_no_draws() -> None:
    network, labels = gpt(), torch.arange(3)
    one, two = (generate_tokens(network, labels, u, TokenSamplingConfig(**GREEDY)) for u in (draws(3), 0 * draws(3)))
    assert torch.equal(one, two)


def test_weights_that_give_no_numbers_are_named() -> None:
    network = gpt()
    torch.nn.init.constant_(network.output.weight, float("nan"))
    with pytest.raises(UserError, match="the logits of tokens are not finite"):
        generate_tokens(network, torch.arange(2), draws(2), TokenSamplingConfig())


@pytest.mark.slow
def test_a_compiled_step_draws_the_same_tokens() -> None:
    network, labels, config = gpt(), torch.arange(3), TokenSamplingConfig(cfg_scale=2.0)
    compiled = generate_tokens(network, labels, draws(3), config, compiled_step(network))
    assert torch.equal(compiled, generate_tokens(network, labels, draws(3), config))
