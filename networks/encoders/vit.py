"""Vision transformers, run block by block: no further than the last layer that is used, keeping only the used ones."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from networks.encoders.base import VisionEncoder
from networks.interfaces import Features


class ViTEncoder(VisionEncoder):
    """Patch embedding, a stack of blocks and a final norm.

    A hidden state is whatever a family's blocks pass on, with class and register tokens; number k is the input of block
    k, counted from 0, so number `depth` is the output of the last block.
    """

    def embed(self, pixels: Tensor) -> tuple[Tensor, Any]:
        """Pixels -> hidden state 0, and what every block needs beside its input (rotary positions, ...)."""
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        raise NotImplementedError

    def step(self, number: int, state: Tensor, context: Any) -> Tensor:
        """Hidden state `number` -> the next one; `context` is the second result of `embed`."""
        return self.blocks[number](state, None)

    def normalise(self, state: Tensor) -> Tensor:
        """What layer -1 applies to the last hidden state."""
        raise NotImplementedError

    @property
    def prefix_tokens(self) -> int:
        """Class and register tokens in front of the patches."""
        return 0

    def level(self, layer: int, state: Tensor, grid: tuple[int, int]) -> Tensor:
        """A requested layer [B, h*w, D] from its hidden state; `grid` is that of the patches."""
        state = self.normalise(state) if layer == -1 else state
        return state[:, self.prefix_tokens :]

    def summarise(self, state: Tensor) -> Tensor:
        """Last hidden state -> one vector per image [B, D]."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def hidden_states(self, pixels: Tensor, wanted: Collection[int]) -> dict[int, Tensor]:
        """The hidden states of these numbers; runs no further than the largest."""
        state, context = self.embed(pixels)
        found = {0: state} if 0 in wanted else {}
        for number in range(max(wanted)):
            state = self.step(number, state, context)
            if number + 1 in wanted:
                found[number + 1] = state
        return found

    def run(self, pixels: Tensor) -> Features:
        height, width = pixels.shape[-2:]
        states = self.hidden_states(pixels, {self.resolve_layer(layer) for layer in self.layers})
        patches = (height // self.patch_size, width // self.patch_size)
        sides = [self.layer_patch_size(layer) for layer in self.layers]
        return Features(
            [self.level(layer, states[self.resolve_layer(layer)], patches) for layer in self.layers],
            [(height // side, width // side) for side in sides],
        )

    def pool(self, pixels: Tensor) -> Tensor:
        return self.summarise(self.hidden_states(pixels, {self.depth})[self.depth])
