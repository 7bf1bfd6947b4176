"""Samples of autoregressive models as the decode tools take them: maps of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.random import torch_generator
from data.token_kind import TokenKind
from networks.ar.config import TokenSamplingConfig
from networks.ar.gpt import GPT
from networks.ar.sampling import compiled_step, generate_tokens
from networks.fingerprint import weights_fingerprint


def token_draws(indices: Sequence[int], tokens: int, seed: int) -> Tensor:
    """A uniform draw for every token of samples with these numbers, float64 [B, N] in [0, 1)."""
    generators = (torch_generator(seed, "sample_tokens", index) for index in indices)
    return torch.stack([torch.rand(tokens, generator=g, dtype=torch.float64) for g in generators])


class TokenSamples:
    """A `SampleMaker` of tokens. What a sample's tokens are drawn by depends on the seed and its number alone.

    Args:
        network: in eval mode; with `precision: bf16` its weights are brought to it.
        config: guidance and how tokens are drawn.
        kind: whose tokens it was trained on.
    """

    def __init__(self, network: GPT, config: TokenSamplingConfig, kind: TokenKind):
        self.network, self.config, self.kind = network, config, kind
        self.num_classes = network.config.num_classes
        if config.cfg_scale > 1:
            _ = network.null_label  # raises where there is none
        self._weights_sha256 = weights_fingerprint(network.state_dict())
        if config.precision == "bf16":
            for parameter in network.parameters():  # and not the rotary table
                parameter.data = parameter.data.bfloat16()
        self._step = compiled_step(network) if config.compile else network.step

    def identity(self) -> dict[str, Any]:
        sampling = self.config.model_dump(exclude={"compile"})
        return {"weights_sha256": self._weights_sha256, "sampling": sampling, "tokens": self.kind.to_json()}

    def columns(self, indices: Sequence[int], labels: Tensor, seed: int) -> dict[str, Tensor]:
        """`tokens`, uint16 [B, 1, h, w]. Raises: UserError if the weights give no finite logits."""
        device = self.network.output.weight.device
        draws = token_draws(indices, self.kind.tokens, seed).to(device)
        tokens = self.generate(labels.to(device), draws).cpu()
        return {"tokens": tokens.to(torch.uint16).unflatten(1, (1, *self.kind.grid))}

    def generate(self, labels: Tensor, draws: Tensor) -> Tensor:
        """As many tokens [B, n] as there are draws; see `generate_tokens`."""
        return generate_tokens(self.network, labels, draws, self.config, self._step)
