"""SiT with representation entanglement (REG, arXiv 2507.01467).

The class token of a frozen encoder is noised and denoised together with the latent, and the tokens of an early block
are aligned with that encoder's. Time: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.config import require_consistent
from common.errors import ShapeError
from networks.diffusion.blocks import BlockDesign, FinalLayer, Predicted
from networks.diffusion.config import REG_RELATIONS, REGSiTConfig
from networks.diffusion.embeddings import join_patches
from networks.diffusion.transformer import DiffusionTransformer, make_blocks


@dataclass(frozen=True)
class REGVelocity:
    """Velocities of a latent and its class token.

    Attributes:
        latent: [B, C, H, W].
        class_token: [B, z_dims[0]].
    """

    latent: Tensor
    class_token: Tensor


@dataclass(frozen=True)
class REGOutput(REGVelocity):
    """The velocities, and what the alignment loss compares with target encoders.

    Attributes:
        projections: of each target encoder, all tokens, the class token first: [B, 1 + N, z_dims[i]].
    """

    projections: list[Tensor]


class REGSiT(DiffusionTransformer):
    """Velocities of a noisy latent and of a noisy class token, given their time and class.

    Raises: ConfigError if keys of the configuration contradict one another.
    """

    config: REGSiTConfig

    def __init__(self, config: REGSiTConfig):
        require_consistent(config, REG_RELATIONS)
        super().__init__(config, class_tokens=1)
        size = config.size()
        width, class_width = size.hidden_size, config.z_dims[0]
        design = BlockDesign(
            width=width, heads=size.num_heads, hidden=int(width * config.mlp_ratio), qk_norm=config.qk_norm
        )
        self.blocks = make_blocks(design, size.depth)
        self.projectors = nn.ModuleList(_projector(width, config.projector_dim, z_dim) for z_dim in config.z_dims)
        self.final_layer = FinalLayer(design, size.patch_size**2 * config.in_channels, class_width)
        self.cls_projectors2 = nn.Linear(class_width, width)
        self.wg_norm = nn.LayerNorm(width, eps=1e-6)
        self.reset_parameters()

    def forward(self, x: Tensor, t: Tensor, y: Tensor, cls_token: Tensor) -> REGOutput:
        """Velocities and projections, for training.

        Args:
            x: noisy latents, [B, C, H, W], of normalised latents.
            t: times, [B], in [0, 1]; 0 is data.
            y: class labels, [B], integers; `null_label` stands for none.
            cls_token: class tokens noised as the latents are, [B, z_dims[0]].
        Raises: ShapeError or UserError if these do not fit the configuration.
        """
        c = self._checked_condition(x, t, y, cls_token)
        tokens = self.embed(x, cls_token)
        projections = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = self.run_block(block, tokens, c)
            if number == self.config.encoder_depth:
                projections = [project(tokens) for project in self.projectors]
        velocity = self._velocity(self.final_layer(tokens, c))
        return REGOutput(velocity.latent, velocity.class_token, projections)

    def velocity(self, x: Tensor, t: Tensor, y: Tensor, cls_token: Tensor) -> REGVelocity:
        """The velocities alone, noise - data, for sampling; arguments as of `forward`."""
        c = self._checked_condition(x, t, y, cls_token)
        tokens = self.embed(x, cls_token)
        for block in self.blocks:
            tokens = self.run_block(block, tokens, c)
        return self._velocity(self.final_layer(tokens, c))

    @property
    def feature_names(self) -> list[str]:
        """The parts whose tokens `features` gives, in its order."""
        names = super().feature_names
        aligned = 1 + self.config.encoder_depth  # the embedder comes before the blocks
        return [*names[:aligned], *(f"projector_{j}" for j in range(len(self.projectors))), *names[aligned:]]

    def features(self, x: Tensor, t: Tensor, y: Tensor, cls_token: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Tokens [B, N, ...] of the patches after each part, under the part's name, in the order of computation.

        `embedder`: patches with their positions; `block_0`, `block_1`, ...; `final_layer`: the output of each patch.
        After block `encoder_depth` - 1 also `projector_0`, ... of all tokens [B, 1 + N, z_dims[i]], class token first.
        What is not asked for is not computed. Arguments as of `forward`.
        """
        c = self._checked_condition(x, t, y, cls_token)
        tokens = self.embed(x, cls_token)
        yield "embedder", tokens[:, 1:]
        for number, block in enumerate(self.blocks):
            tokens = self.run_block(block, tokens, c)
            yield f"block_{number}", tokens[:, 1:]
            if number + 1 == self.config.encoder_depth:
                yield from ((f"projector_{j}", project(tokens)) for j, project in enumerate(self.projectors))
        yield "final_layer", self.final_layer(tokens, c).patches

    def embed(self, x: Tensor, cls_token: Tensor) -> Tensor:
        """Latents [B, C, H, W] and class tokens [B, z_dims[0]] -> tokens [B, 1 + N, D] with their fixed positions."""
        first = self.wg_norm(self.cls_projectors2(cls_token))[:, None]
        return torch.cat([first, self.x_embedder(x)], dim=1) + self.pos_embed

    def _checked_condition(self, x: Tensor, t: Tensor, y: Tensor, cls_token: Tensor) -> Tensor:
        self.require_inputs(x, t, y)
        expected = (len(x), self.config.z_dims[0])
        if cls_token.shape != expected:
            raise ShapeError(
                f"found class tokens {list(cls_token.shape)}, expected {list(expected)}: one for each latent, as wide "
                "as z_dims[0] of the network says."
            )
        return self.condition(t, y)

    def _velocity(self, predicted: Predicted) -> REGVelocity:
        assert predicted.class_token is not None, "the final layer was built with a class token"
        return REGVelocity(join_patches(predicted.patches, self.patch_size), predicted.class_token)


def _projector(width: int, hidden: int, output: int) -> nn.Sequential:
    """From the tokens of a block to the space of a target encoder, token by token."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, output)
    )
