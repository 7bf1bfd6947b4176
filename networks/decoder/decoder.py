"""Decoder of VFM-VAE: expansion of the latent, mapping network, latent branches and progressive synthesis blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ShapeError
from networks.compression import initialise_adapter, project_tokens, width_projection
from networks.config import TokenizerConfig
from networks.decoder.convnext_block import ConvNeXtBlock
from networks.decoder.latent_branch import latent_branch
from networks.decoder.mapping import MappingNetwork
from networks.decoder.modulated_conv_block import ModulatedConvBlock
from networks.decoder.synthesis_block import BlockPlan
from networks.interfaces import Conditioning, Decoded
from networks.layers.modulated_conv3x3 import FIXED_NOISE, LayerNoise
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
    """z [B, C, h, w] -> images of all resolutions.

    With ConvNeXt layers nothing in it depends on h and w once it is built; without them, noise maps fix both.

    Attributes:
        fp16_blocks: so many blocks of the highest resolutions run in fp16, 0 to begin with.

    Args:
        config: its shape.
        noise: ConvNeXt layers with fixed noise maps (`legacy` weights).
        text_dim: width of the text embeddings; 0 if it is not conditional on texts.
    """

    def __init__(self, config: TokenizerConfig, noise: bool, text_dim: int = 0):
        super().__init__()
        c, side = config.decoder, config.img_resolution
        z_channels = config.latent.channels()
        expanded = z_channels * c.decompress_factor
        self.pooled_side = c.z_pooled_resolution
        self.latent_multiple = c.latent_multiple(side, config.latent_side())
        self.fixed_latent_side = None if c.use_convnext else config.latent_side()
        self.resolutions = c.block_resolutions(side)
        self.expansion = Expansion(z_channels, c.decompress_factor, c.how_to_decompress, c.attnproj_post_quant_layers)
        self.mapping = MappingNetwork(
            expanded * self.pooled_side**2,
            c.z_dim_for_mapping_mlp_output,
            text_dim=text_dim,
            class_dim=c.label_dim if c.reads_classes else 0,
        )

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
        depths = dict(zip(c.attn_block_indices, c.attn_depths, strict=True))
        block_class = ConvNeXtBlock if c.use_convnext else ModulatedConvBlock
        self.fp16_blocks = 0
        self.blocks = nn.ModuleList(
            block_class(
                BlockPlan(
                    index=k,
                    side=self.resolutions[k],
                    n_in=(channels[k - 1] if k else 0) + widths.get(k, 0),
                    n_skip=channels[k - 1] if k else None,
                    channels=channels[k],
                    w_dim=self.mapping.w_dim,
                    layers=1 + c.num_res_blocks * c.layers_per_group(k),
                    self_attention=depths.get(k, 0) if c.use_self_attn else 0,
                    cross_attention=depths.get(k, 0) if c.use_cross_attn else 0,
                    heads=c.attn_heads,
                    ff_mult=c.attn_ff_mult,
                    context_channels=text_dim,
                    blur=c.use_gaussian_blur,
                    sums_features=c.use_multiscale_output,
                    noise=noise,
                    clamp=c.conv_clamp,
                )
            )
            for k in range(c.num_blocks)
        )

    def recompute_above(self, side: int | None) -> None:
        """Let the blocks of more than `side` pixels keep less for the backward pass; None: let all keep everything."""
        for block, resolution in zip(self.blocks, self.resolutions, strict=True):
            block.recomputed = side is not None and resolution > side

    def style(
        self,
        expanded: Tensor,
        label: Tensor | None = None,
        truncation_psi: float = 1.0,
        update_average: bool = False,
    ) -> Tensor:
        """w [B, w_dim] from the expanded latent, pooled to a global code (channel-major), and the label."""
        pooled = F.adaptive_avg_pool2d(expanded, self.pooled_side).flatten(1)
        return self.mapping(pooled, label, truncation_psi, update_average)

    def forward(
        self,
        z: Tensor,
        conditioning: Conditioning | None = None,
        truncation_psi: float = 1.0,
        update_average: bool = False,
        noise: LayerNoise = FIXED_NOISE,
    ) -> Decoded:
        """Decode a latent.

        Args:
            z: [B, C, h, w], raw (no scaling factor).
            conditioning: what a conditional decoder depends on besides z.
            truncation_psi: see `MappingNetwork`.
            update_average: advance the running mean of the styles (training).
            noise: what the layers of a decoder without ConvNeXt layers add to their outputs.

        Raises: ShapeError if h or w does not suit the latent branches or the noise maps.
        """
        self._check_sides(z.shape[2], z.shape[3])
        expanded = self.expansion(z)
        label = None if conditioning is None else conditioning.label
        w = self.style(expanded, label, truncation_psi, update_average)
        x, skip, images = None, None, []
        first_in_fp16 = len(self.blocks) - self.fp16_blocks
        for k, block in enumerate(self.blocks):
            if k < first_in_fp16:
                x, skip, image = block(self._block_input(k, x, expanded), skip, w, conditioning, noise)
            else:
                with torch.autocast(z.device.type, dtype=torch.float16):
                    skip = None if skip is None else skip.half()
                    x = self._block_input(k, x, expanded).half()
                    x, skip, image = block(x, skip, w, conditioning, noise)
            images.append(image)
        return Decoded(images[-1], dict(zip(self.resolutions[:-1], images[:-1], strict=True)))

    def _block_input(self, k: int, x: Tensor | None, expanded: Tensor) -> Tensor:
        """The features of the block before, and the latent branch if block k has one."""
        if str(k) not in self.latent_branches:
            return x
        branch = self.latent_branches[str(k)](expanded)
        return branch if x is None else torch.cat([x, branch.to(x.dtype)], dim=1)

    def _check_sides(self, height: int, width: int) -> None:
        multiple, side = self.latent_multiple, self.fixed_latent_side
        if side is not None and (height, width) != (side, side):
            raise ShapeError(
                f"a latent of {height} x {width} cannot be decoded; expected {side} x {side}: the noise maps of a "
                "decoder without ConvNeXt layers (decoder.use_convnext: false) fit one resolution."
            )
        if height % multiple or width % multiple:
            raise ShapeError(
                f"a latent of {height} x {width} cannot be decoded; expected sides that are multiples of {multiple}."
            )
