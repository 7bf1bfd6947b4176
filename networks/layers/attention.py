"""Attention of the decoder: from every position of a feature map to all positions, or to the tokens of a text."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from networks.layers.dot_product_attention import attend
from networks.layers.norm import ChannelRMSNorm, TokenRMSNorm


class SelfAttention(nn.Module):
    """Multi-head attention with a learned null key and value that every query may attend to; output starts at 0."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = ChannelRMSNorm(channels)
        self.to_q = nn.Conv2d(channels, channels, 1, bias=False)
        self.to_k = nn.Conv2d(channels, channels, 1, bias=False)
        self.to_v = nn.Conv2d(channels, channels, 1, bias=False)
        self.null_kv = nn.Parameter(torch.randn(2, heads, channels // heads) * 0.02)
        self.to_out = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.zeros_(self.to_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        n = self.norm(x)
        q, k, v = (
            rearrange(conv(n), "b (g d) h w -> b g (h w) d", g=self.heads) for conv in (self.to_q, self.to_k, self.to_v)
        )
        null_k, null_v = self.null_kv.to(k.dtype)[:, None, :, None].expand(-1, x.shape[0], -1, -1, -1)
        attended = attend(q, torch.cat([null_k, k], dim=2), torch.cat([null_v, v], dim=2))  # [B, heads, H*W, d]
        return self.to_out(rearrange(attended, "b g (h w) d -> b (g d) h w", h=height))


class CrossAttention(nn.Module):
    """Multi-head attention from a feature map to tokens and a learned null token; output starts at 0."""

    def __init__(self, channels: int, context_channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = ChannelRMSNorm(channels)
        self.norm_context = TokenRMSNorm(context_channels)
        self.to_q = nn.Conv2d(channels, channels, 1, bias=False)
        self.to_kv = nn.Linear(context_channels, 2 * channels, bias=False)
        self.null_kv = nn.Parameter(torch.randn(2, heads, channels // heads) * 0.02)
        self.to_out = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.zeros_(self.to_out.weight)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Feature map [B, C, H, W], tokens [B, L, Dc], mask [B, L] (True: may be attended to) -> [B, C, H, W].

        The null token may always be attended to, so that a query has somewhere to go when no token is of use to it.
        """
        return self.attend_to(x, context, None if mask is None else F.pad(mask, (1, 0), value=True))

    def attend_to(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """As `forward`, with a mask [B, 1 + L] whose first column stands for the null token."""
        height = x.shape[2]
        q = rearrange(self.to_q(self.norm(x)), "b (g d) h w -> b g (h w) d", g=self.heads)
        kv = self.to_kv(self.norm_context(context))
        k, v = rearrange(kv, "b l (two g d) -> two b g l d", two=2, g=self.heads)
        null_k, null_v = self.null_kv.to(k.dtype)[:, None, :, None].expand(-1, x.shape[0], -1, -1, -1)
        attended = attend(
            q,
            torch.cat([null_k, k], dim=2),
            torch.cat([null_v, v], dim=2),
            None if mask is None else mask[:, None, None],
        )  # [B, heads, H*W, d]
        return self.to_out(rearrange(attended, "b g (h w) d -> b (g d) h w", h=height))


class AttentionBlock(nn.Module):
    """x + attention(x), then x + feed-forward(x); both start as the identity."""

    def __init__(self, attn: SelfAttention | CrossAttention, channels: int, ff_mult: int):
        super().__init__()
        self.attn = attn
        self.ff_norm = ChannelRMSNorm(channels)
        self.ff_in = nn.Conv2d(channels, ff_mult * channels, 1)
        self.ff_out = nn.Conv2d(ff_mult * channels, channels, 1)
        nn.init.zeros_(self.ff_out.weight)

    def forward(self, x: Tensor, *context: Tensor | None) -> Tensor:
        return self.feed_forward(x + self.attn(x, *context))

    def feed_forward(self, x: Tensor) -> Tensor:
        """x + feed-forward(x)."""
        return x + self.ff_out(F.gelu(self.ff_in(self.ff_norm(x))))


class SelfAttentionBlock(AttentionBlock):
    """Self-attention with its feed-forward layer."""

    def __init__(self, channels: int, heads: int = 8, ff_mult: int = 4):
        super().__init__(SelfAttention(channels, heads), channels, ff_mult)


class CrossAttentionBlock(AttentionBlock):
    """Cross-attention with its feed-forward layer; forward takes (x, context, mask)."""

    def __init__(self, channels: int, context_channels: int, heads: int = 8, ff_mult: int = 4):
        super().__init__(CrossAttention(channels, context_channels, heads), channels, ff_mult)
