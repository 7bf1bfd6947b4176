"""What both diffusion transformers share: embeddings, blocks, initial weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import ShapeError, UserError
from networks.diffusion.blocks import Block, BlockDesign, FinalLayer
from networks.diffusion.config import TransformerConfig
from networks.diffusion.embeddings import (
    PatchEmbedding,
    RotaryEmbedding,
    TimeEmbedding,
    position_table,
)
from networks.layers.labels import LabelEmbedding, null_label


class DiffusionTransformer(nn.Module):
    """Tokens of a noisy latent through blocks that time and class modulate.

    A subclass adds `blocks`, `final_layer` and, if it has them, rotary positions, and then draws initial weights.

    Args:
        class_tokens: tokens in front of the patches; their fixed positions are 0.
    """

    blocks: nn.ModuleList
    final_layer: FinalLayer

    def __init__(self, config: TransformerConfig, class_tokens: int = 0):
        super().__init__()
        self.config = config
        size = config.size()
        self.patch_size = size.patch_size
        positions = torch.zeros(1, class_tokens + config.tokens_per_side() ** 2, size.hidden_size)
        positions[0, class_tokens:] = position_table(config.tokens_per_side(), size.hidden_size)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.x_embedder = PatchEmbedding(config.in_channels, size.hidden_size, size.patch_size)
        self.t_embedder = TimeEmbedding(size.hidden_size)
        self.y_embedder = LabelEmbedding(config.num_classes + (config.class_dropout_prob > 0), size.hidden_size)

    @property
    def null_label(self) -> int:
        """The label that stands for no class. Raises UserError if the network was built without one."""
        return null_label(self.config.num_classes, self.config.class_dropout_prob)

    @property
    def feature_names(self) -> list[str]:
        """The parts whose tokens `features` of a subclass gives, in its order."""
        return ["embedder", *(f"block_{number}" for number in range(len(self.blocks))), "final_layer"]

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        """Times and labels [B] -> what modulates the blocks, [B, D]."""
        return self.t_embedder(t) + self.y_embedder(y)

    def run_block(self, block: nn.Module, tokens: Tensor, c: Tensor, rope: RotaryEmbedding | None = None) -> Tensor:
        """One block; with `use_checkpoint`, what its backward pass needs is computed again there."""
        if self.config.use_checkpoint and torch.is_grad_enabled():
            # No block draws anything, so there is no generator state to bring back.
            return checkpoint(block, tokens, c, rope, use_reentrant=False, preserve_rng_state=False)
        return block(tokens, c, rope)

    def require_inputs(self, x: Tensor, t: Tensor, y: Tensor) -> None:
        """Refuse inputs that do not fit.

        Labels are compared with the number of classes on the CPU only: reading them from an accelerator would stop it
        at every step.

        Raises: ShapeError if x is not [B, C, H, W] of the configured latent or t and y are not [B]; UserError if a
            label is no class.
        """
        side, channels = self.config.input_size, self.config.in_channels
        if x.ndim != 4 or x.shape[1:] != (channels, side, side):
            raise ShapeError(
                f"found latents {list(x.shape)}, expected [B, {channels}, {side}, {side}], as in_channels and "
                "input_size of the network say."
            )
        for name, value in (("times", t), ("labels", y)):
            if value.shape != (len(x),):
                raise ShapeError(f"found {name} {list(value.shape)} for {len(x)} latents, expected [{len(x)}].")
        if y.device.type == "cpu":
            rows = self.y_embedder.embedding_table.num_embeddings
            wrong = y[(y < 0) | (y >= rows)]
            if len(wrong):
                null = f" (classes) or {rows - 1} (the null class)" if rows > self.config.num_classes else ""
                raise UserError(f"found the label {int(wrong[0])}, expected 0 to {self.config.num_classes - 1}{null}.")

    def reset_parameters(self) -> None:
        """Draw initial weights: the network's output is exactly 0 and every block is the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _xavier(module)
        _xavier(self.x_embedder.proj)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        modulations = [module.adaLN_modulation[1] for module in (*self.blocks, self.final_layer)]
        for layer in (*modulations, self.final_layer.linear, self.final_layer.linear_cls):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)


def _xavier(layer: nn.Linear | nn.Conv2d) -> None:
    """Weights uniform in +-sqrt(6 / (inputs + outputs)), a patch counting as one vector of inputs; biases 0."""
    nn.init.xavier_uniform_(layer.weight.flatten(1))
    nn.init.zeros_(layer.bias)


def make_blocks(design: BlockDesign, depth: int) -> nn.ModuleList:
    """A stack of equal blocks."""
    return nn.ModuleList(Block(design) for _ in range(depth))
