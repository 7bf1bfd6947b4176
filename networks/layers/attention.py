"""Self-attention of the decoder, over all positions of a feature map."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from networks.layers.dot_product_attention import attend
from networks.layers.norm import ChannelRMSNorm


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


class SelfAttentionBlock(nn.Module):
    """x + attention(x), then x + feed-forward(x); both start as the identity."""

    def __init__(self, channels: int, heads: int = 8, ff_mult: int = 4):
        super().__init__()
        self.attn = SelfAttention(channels, heads)
        self.ff_norm = ChannelRMSNorm(channels)
        self.ff_in = nn.Conv2d(channels, ff_mult * channels, 1)
        self.ff_out = nn.Conv2d(ff_mult * channels, channels, 1)
        nn.init.zeros_(self.ff_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ff_out(F.gelu(self.ff_in(self.ff_norm(x))))
