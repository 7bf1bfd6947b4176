"""A class-conditional GPT of the tokens of an image (LlamaGen, arXiv 2406.06525; VFMTok, arXiv 2507.08441).

[class, t_0, ..., t_{N-2}] -> embeddings -> causal layers -> norm -> logits of t_0, ..., t_{N-1}

B images, N tokens of an image, T positions of a sequence, D width, d size of a head, V codes. Names of parameters are
the reference's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common.config import require_consistent
from common.errors import ShapeError, UserError
from networks.ar.config import GPT_RELATIONS, GPTConfig
from networks.ar.rope import rope_table, rotate
from networks.layers.dot_product_attention import attend
from networks.layers.labels import LabelEmbedding, null_label
from networks.layers.norm import RMSNorm

INITIAL_STD = 0.02


@dataclass(frozen=True)
class LayerCache:
    """Rotated keys and values of one layer, [B, kv heads, N, d], of the positions that were seen."""

    keys: Tensor
    values: Tensor

    def put(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        """Keep those of one position, an int64 tensor [1]."""
        self.keys.index_copy_(2, position, keys)
        self.values.index_copy_(2, position, values)

    def first(self, images: int) -> LayerCache:
        """That of the first so many images; it shares their memory."""
        return LayerCache(self.keys[:images], self.values[:images])


class Attention(nn.Module):
    """Causal self-attention with rotary positions; several query heads may share a head of keys and values."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        size = config.size()
        self.heads, self.kv_heads, self.head_size = size.n_head, config.kv_heads(), size.dim // size.n_head
        self.dropout = config.attn_dropout_p
        self.wqkv = nn.Linear(size.dim, (self.heads + 2 * self.kv_heads) * self.head_size, bias=False)
        self.wo = nn.Linear(size.dim, size.dim, bias=False)
        self.resid_dropout = nn.Dropout(config.resid_dropout_p)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Tokens [B, T, D] with their rows of the rotary table."""
        q, k, v = self._project(x, table)
        dropout = self.dropout if self.training else 0.0
        return self._merge(attend(q, self._shared(k), self._shared(v), dropout=dropout, is_causal=True))

    def step(self, x: Tensor, table: Tensor, cache: LayerCache, position: Tensor, length: int) -> Tensor:
        """One token [B, 1, D] at a position [1] behind those in the cache, where its key and value join them.

        Args:
            length: how much of the cache is read; at least `position` + 1.
        """
        q, k, v = self._project(x, table)
        cache.put(k, v, position)
        seen = torch.arange(length, device=x.device) <= position
        keys, values = self._shared(cache.keys[:, :, :length]), self._shared(cache.values[:, :, :length])
        return self._merge(attend(q, keys, values, seen[None, None, None]))

    def _project(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values: [B, heads, T, d] each, keys and values with their own heads."""
        sizes = [count * self.head_size for count in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = (rearrange(t, "b n (g d) -> b g n d", d=self.head_size) for t in self.wqkv(x).split(sizes, dim=-1))
        return rotate(q, table), rotate(k, table), v

    def _shared(self, x: Tensor) -> Tensor:
        return x if self.kv_heads == self.heads else x.repeat_interleave(self.heads // self.kv_heads, dim=1)

    def _merge(self, attended: Tensor) -> Tensor:
        joined = rearrange(attended, "b g n d -> b n (g d)")
        return self.resid_dropout(self.wo(joined.to(self.wo.weight.dtype)))


class FeedForward(nn.Module):
    """w2 (silu(w1 x) * w3 x) on tokens [B, T, D] (arXiv 2002.05202)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        width, hidden = config.size().dim, config.feed_forward_width()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.ffn_dropout = nn.Dropout(config.ffn_dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to what came in.

    Args:
        skipped: how often a sample skips both branches in training (stochastic depth, arXiv 1603.09382).
    """

    def __init__(self, config: GPTConfig, skipped: float):
        super().__init__()
        self.skipped = skipped
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.size().dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.size().dim, config.norm_eps)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self._drop_path(self.attention(self.attention_norm(x), table))
        return x + self._drop_path(self.feed_forward(self.ffn_norm(x)))

    def step(self, x: Tensor, table: Tensor, cache: LayerCache, position: Tensor, length: int) -> Tensor:
        """One token, see `Attention.step`."""
        x = x + self.attention.step(self.attention_norm(x), table, cache, position, length)
        return x + self.feed_forward(self.ffn_norm(x))

    def _drop_path(self, branch: Tensor) -> Tensor:
        if not self.training or self.skipped == 0:
            return branch
        kept = 1 - self.skipped
        mask = torch.rand(len(branch), 1, 1, device=branch.device) < kept
        return branch * (mask / kept).to(branch.dtype)


class GPT(nn.Module):
    """The network. In training mode dropout masks come from torch's generators, whose state is the caller's to set.

    Raises: ConfigError if keys of the configuration contradict one another.
    """

    rope: Tensor

    def __init__(self, config: GPTConfig):
        super().__init__()
        require_consistent(config, GPT_RELATIONS)
        self.config = config
        size = config.size()
        self.cls_embedding = LabelEmbedding(config.num_classes + (config.class_dropout_prob > 0), size.dim)
        self.tok_embeddings = nn.Embedding(config.vocab_size, size.dim)
        self.tok_dropout = nn.Dropout(config.token_dropout_p)
        rates = torch.linspace(0, config.drop_path_rate, size.n_layer, device="cpu").tolist()
        self.layers = nn.ModuleList(Layer(config, rate) for rate in rates)
        self.norm = RMSNorm(size.dim, config.norm_eps)
        self.output = nn.Linear(size.dim, config.vocab_size, bias=False)
        table = rope_table(config.grid_side(), size.dim // size.n_head, config.rope_base)
        self.register_buffer("rope", table, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial weights: all codes are equally likely, so that the first loss is ln V."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INITIAL_STD)
        nn.init.zeros_(self.output.weight)

    @property
    def null_label(self) -> int:
        """The label that stands for no class. Raises UserError if the network was built without one."""
        return null_label(self.config.num_classes, self.config.class_dropout_prob)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits of each token, given those before it and the class.

        Args:
            tokens: t_0 to t_{T-2}, int64 [B, T - 1] with T from 1 to N.
            labels: class indices or the null class, int64 [B].

        Returns: of t_0 to t_{T-1}, float32 [B, T, V].
        Raises: ShapeError, UserError for what does not fit; values are looked at on the CPU only.
        """
        self._require_inputs(tokens, labels)
        x = torch.cat([self.cls_embedding(labels)[:, None], self.tok_embeddings(tokens)], dim=1)
        x, table = self.tok_dropout(x), self.rope[: x.shape[1]]
        for layer in self.layers:
            if self.config.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(layer, x, table, use_reentrant=False)
            else:
                x = layer(x, table)
        return self._logits(x)

    def step(self, tokens: Tensor, labels: Tensor, caches: list[LayerCache], position: Tensor, length: int) -> Tensor:
        """Logits of the token at a position, given the one before it; those before that are in the caches.

        Args:
            tokens: that one, int64 [B]; at position 0 anything, for the class comes first.
            labels: int64 [B].
            caches: of each layer, from `new_caches`.
            position: int64 [1], from 0 to N - 1.
            length: see `Attention.step`.

        Returns: float32 [B, V].
        """
        embedded = torch.where(position == 0, self.cls_embedding(labels), self.tok_embeddings(tokens))
        x, table = embedded[:, None], self.rope[position]
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer.step(x, table, cache, position, length)
        return self._logits(x)[:, 0]

    def new_caches(self, images: int) -> list[LayerCache]:
        """Caches of all layers for so many sequences, of a fixed shape."""
        size = self.config.size()
        weight = self.output.weight
        shape = (images, self.config.kv_heads(), self.config.block_size, size.dim // size.n_head)
        return [LayerCache(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.layers]

    def _logits(self, x: Tensor) -> Tensor:
        return self.output(self.norm(x)).float()

    def _require_inputs(self, tokens: Tensor, labels: Tensor) -> None:
        c = self.config
        if tokens.ndim != 2 or tokens.shape[1] >= c.block_size:
            raise ShapeError(
                f"found tokens {list(tokens.shape)}, expected [B, T] with T up to {c.block_size - 1}: the last of the "
                f"block_size {c.block_size} tokens is only predicted."
            )
        if labels.shape != (len(tokens),):
            raise ShapeError(f"found labels {list(labels.shape)} for {len(tokens)} images, expected [{len(tokens)}].")
        rows = self.cls_embedding.embedding_table.num_embeddings
        for name, value, count in (("token", tokens, c.vocab_size), ("label", labels, rows)):
            if value.device.type == "cpu" and (wrong := value[(value < 0) | (value >= count)]).numel():
                raise UserError(f"found the {name} {int(wrong[0])}, expected 0 to {count - 1}.")
