"""Decoder of VFM-VAE: expansion of the latent, mapping network, latent branches and progressive synthesis blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ShapeError
from networks.compression import initialise_adapter, project_tokens, width_projection
from networks.config import TokenizerConfig
from networks.decoder.latent_branch import latent_branch
from networks.decoder.mapping import MappingNetwork
from networks.decoder.synthesis_block import BlockPlan, SynthesisBlock
from networks.interfaces import Decoded
from networks.tokens import map_to_tokens, tokens_to_map


class Expansion(nn.Module):
    """Widens the latent: z [B, C, h, w] -> [B, C * decompress_factor, h, w]."""

    def __init__(self, channels: int, factor: int, kind: str, layers: int):
        super().__init__()
        self.projection = width_projection(kind, channels, channels * factor, layers, width_changes_last=False)
        initialise_adapter(self)

    def forward(self, z: Tensor) -> Tensor:
        grid = (z.shape[2], z.shape[3])
        return tokens_to_map(project_tokens(self.projection, map_to_tokens(z), grid), grid)


class Decoder(nn.Module):
    """z [B, C, h, w] -> images of all resolutions. Nothing in it depends on h and w once it is built."""

    def __init__(self, config: TokenizerConfig, noise: bool):
        super().__init__()
        c, side = config.decoder, config.img_resolution
        z_channels = config.latent.channels()
        expanded = z_channels * c.decompress_factor
        self.pooled_side = c.z_pooled_resolution
        self.latent_multiple = c.latent_multiple(side, config.latent_side())
        self.resolutions = c.block_resolutions(side)
        self.expansion = Expansion(z_channels, c.decompress_factor, c.how_to_decompress, c.attnproj_post_quant_layers)
        self.mapping = MappingNetwork(expanded * self.pooled_side**2, c.z_dim_for_mapping_mlp_output)

        branches, widths = {}, {}
        for k in c.concat_z_block_indices:
            mapped = c.concat_z_mapped_dims[k] if c.concat_z_mapped_dims else None
            branches[str(k)], widths[k] = latent_branch(
                expanded,
                mapped,
                self.resolutions[k] // 2,
                config.latent_side(),
                c.activation_for_concat_z,
                c.how_to_process_concat_z,
            )
        self.latent_branches = nn.ModuleDict(branches)

        channels = c.block_channels(side)
        depths = dict(zip(c.attn_block_indices, c.attn_depths, strict=True)) if c.use_self_attn else {}
        per_group = [3 if k <= 3 and c.add_additional_convnext else 2 for k in range(c.num_blocks)]
        self.blocks = nn.ModuleList(
            SynthesisBlock(
                BlockPlan(
                    index=k,
                    n_in=(channels[k - 1] if k else 0) + widths.get(k, 0),
                    n_skip=channels[k - 1] if k else None,
                    channels=channels[k],
                    w_dim=self.mapping.w_dim,
                    layers=1 + c.num_res_blocks * per_group[k],
                    attention_depth=depths.get(k, 0),
                    attention_heads=c.attn_heads,
                    attention_ff_mult=c.attn_ff_mult,
                    blur=c.use_gaussian_blur,
                    noise=noise,
                )
            )
            for k in range(c.num_blocks)
        )

    def style(self, expanded: Tensor, truncation_psi: float = 1.0, update_average: bool = False) -> Tensor:
        """w [B, w_dim] from the expanded latent, pooled to a global code (channel-major)."""
        pooled = F.adaptive_avg_pool2d(expanded, self.pooled_side).flatten(1)
        return self.mapping(pooled, truncation_psi, update_average)

    def forward(self, z: Tensor, truncation_psi: float = 1.0, update_average: bool = False) -> Decoded:
        """Decode a latent.

        Args:
            z: [B, C, h, w], raw (no scaling factor).
            truncation_psi: see `MappingNetwork`.
            update_average: advance the running mean of the styles (training).

        Raises: ShapeError if h or w does not suit the latent branches.
        """
        multiple = self.latent_multiple
        if z.shape[2] % multiple or z.shape[3] % multiple:
            raise ShapeError(
                f"a latent of {z.shape[2]} x {z.shape[3]} cannot be decoded; "
                f"expected sides that are multiples of {multiple}."
            )
        expanded = self.expansion(z)
        w = self.style(expanded, truncation_psi, update_average)
        x, skip, images = None, None, []
        for k, block in enumerate(self.blocks):
            inputs = [] if x is None else [x]
            if str(k) in self.latent_branches:
                branch = self.latent_branches[str(k)](expanded)
                inputs.append(branch if x is None else branch.to(x.dtype))
            x, skip, image = block(torch.cat(inputs, dim=1), skip, w)
            images.append(image)
        return Decoded(images[-1], dict(zip(self.resolutions[:-1], images[:-1], strict=True)))
