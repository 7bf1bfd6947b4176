"""Attention projection: changes the width of tokens while they look at one another."""

from __future__ import annotations

import itertools

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from networks.layers.dot_product_attention import attend


class ProjectionAttention(nn.Module):
    """Self-attention from n_in to n_out channels.

    Inside it is as wide as the wider of the two. When it narrows, the heads are averaged and each must be n_out wide;
    otherwise they are concatenated.
    """

    def __init__(self, n_in: int, n_out: int, heads: int):
        super().__init__()
        inner = max(n_in, n_out)
        assert n_in <= n_out or inner == heads * n_out, "averaged heads must be as wide as the output"
        self.heads = heads
        self.narrows = n_in > n_out
        self.qkv = nn.Linear(n_in, 3 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.register_buffer("k_bias", torch.zeros(inner))  # a bias on keys cancels in the softmax
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.proj = nn.Linear(n_out, n_out)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "b n (three g d) -> three b g n d", three=3, g=self.heads)
        attended = attend(q, k, v)  # [B, heads, N, d]
        merged = attended.mean(dim=1) if self.narrows else rearrange(attended, "b g n d -> b n (g d)")
        return self.proj(merged)


class GeGLU(nn.Module):
    """Gated feed-forward layer: out(GELU_tanh(gate(h)) * value(h)) with h = LN(x)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.gate = nn.Linear(width, hidden)
        self.value = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self.out(F.gelu(self.gate(h), approximate="tanh") * self.value(h))


class ProjectionBlock(nn.Module):
    """y = skip(LN x) + attention(LN x);  out = y + GeGLU(LN y)."""

    def __init__(self, n_in: int, n_out: int, heads: int):
        super().__init__()
        self.norm_attn = nn.LayerNorm(n_in)
        self.attn = ProjectionAttention(n_in, n_out, heads)
        self.norm_skip = nn.LayerNorm(n_in)
        self.skip = nn.Linear(n_in, n_out)
        self.norm_mlp = nn.LayerNorm(n_out)
        self.mlp = GeGLU(n_out, 2 * n_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.skip(self.norm_skip(x)) + self.attn(self.norm_attn(x))
        return y + self.mlp(self.norm_mlp(y))


class AttentionProjection(nn.Module):
    """A stack of projection blocks on tokens [B, N, n_in] -> [B, N, n_out].

    Args:
        n_in, n_out: channels; one must divide the other.
        heads: attention heads of every block.
        layers: number of blocks.
        width_changes_last: the last block changes the width (encoder side) rather than the first (decoder side).
    """

    def __init__(self, n_in: int, n_out: int, heads: int, layers: int, width_changes_last: bool):
        super().__init__()
        before = n_in if width_changes_last else n_out
        widths = [n_in, *[before] * (layers - 1), n_out]
        self.blocks = nn.ModuleList(ProjectionBlock(a, b, heads) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x
