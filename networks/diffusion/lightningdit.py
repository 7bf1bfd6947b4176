"""LightningDiT (arXiv 2501.01423): DiT with RMSNorm, SwiGLU, rotary positions and normalised queries and keys."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from common.config import require_consistent
from networks.diffusion.blocks import BlockDesign, FinalLayer
from networks.diffusion.config import LIGHTNINGDIT_RELATIONS, LightningDiTConfig
from networks.diffusion.embeddings import RotaryEmbedding, join_patches
from networks.diffusion.transformer import DiffusionTransformer, make_blocks


class LightningDiT(DiffusionTransformer):
    """Velocity of a noisy latent, given its time and class.

    Two methods ask for it, and differ in what they call time. Everything in this project uses `velocity`, where t = 0
    is data and t = 1 is noise. `forward` is the function that the weights were trained as: t = 0 is noise, t = 1 is
    data, x_t = t data + (1 - t) noise, and its result is data - noise.

    Raises: ConfigError if keys of the configuration contradict one another.
    """

    config: LightningDiTConfig

    def __init__(self, config: LightningDiTConfig):
        require_consistent(config, LIGHTNINGDIT_RELATIONS)
        super().__init__(config)
        size = config.size()
        design = BlockDesign(
            width=size.hidden_size,
            heads=size.num_heads,
            hidden=int(size.hidden_size * config.mlp_ratio),
            rms_norm=config.use_rmsnorm,
            qk_norm=config.use_qknorm,
            swiglu=config.use_swiglu,
            shift=not config.wo_shift,
        )
        head_size = size.hidden_size // size.num_heads
        self.feat_rope = RotaryEmbedding(config.tokens_per_side(), head_size) if config.use_rope else None
        self.blocks = make_blocks(design, size.depth)
        channels = 2 * config.in_channels if config.learn_sigma else config.in_channels
        self.final_layer = FinalLayer(design, size.patch_size**2 * channels)
        self.reset_parameters()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """data - noise in the convention of the weights: t = 0 is noise, t = 1 is data.

        Args:
            x: noisy latents, [B, C, H, W], of normalised latents.
            t: times, [B], in [0, 1].
            y: class labels, [B], integers; `null_label` stands for none.
        Returns: [B, C, H, W].
        Raises: ShapeError or UserError if these do not fit the configuration.
        """
        self.require_inputs(x, t, y)
        c = self.condition(t, y)
        tokens = self.embed(x)
        for block in self.blocks:
            tokens = self.run_block(block, tokens, c, self.feat_rope)
        output = join_patches(self.final_layer(tokens, c).patches, self.patch_size)
        return output[:, : self.config.in_channels]

    def velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """dx/dt = noise - data in the convention of the project: t = 0 is data, t = 1 is noise. Else as `forward`."""
        return -self(x, _trained_time(t), y)

    def features(self, x: Tensor, t: Tensor, y: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Tokens [B, N, ...] after each part, under the part's name, in the order of computation.

        `embedder`: patches with their positions; `block_0`, `block_1`, ...; `final_layer`: the output of each patch.
        What is not asked for is not computed. t is as in `velocity`: 0 is data.
        """
        self.require_inputs(x, t, y)
        c = self.condition(_trained_time(t), y)
        tokens = self.embed(x)
        yield "embedder", tokens
        for number, block in enumerate(self.blocks):
            tokens = self.run_block(block, tokens, c, self.feat_rope)
            yield f"block_{number}", tokens
        yield "final_layer", self.final_layer(tokens, c).patches

    def embed(self, x: Tensor) -> Tensor:
        """Latents [B, C, H, W] -> tokens [B, N, D] with their fixed positions."""
        return self.x_embedder(x) + self.pos_embed


def _trained_time(t: Tensor) -> Tensor:
    """The time that the weights know, from one where 0 is data."""
    return 1 - t
