"""The discrete bottleneck: multi-codebook quantisation.

Shapes: B images, h x w latent grid; K codebooks of V codes of width c each, so that the latent has K c channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from common.distributed import all_reduce
from common.errors import ShapeError, UserError
from common.precision import full_precision

USED_SHARE = 0.01  # a code counts as used if it is chosen this often, relative to an even use of its codebook


@dataclass(frozen=True)
class Quantized:
    """A batch of latents made of codes.

    Attributes:
        z: the latent [B, K c, h, w]: at each position the chosen codes side by side. Its gradient goes straight through
            to what was quantised, and not to the codebooks.
        indices: which code of each codebook was chosen, [B, K, h, w], int64 from 0 to V - 1.
        inputs: what was quantised, in chunks, [B, K, h, w, c].
        codes: the chosen codes, [B, K, h, w, c]; their gradient goes to the codebooks alone.
        tables: all codes, [K, V, c].

    Where only directions count, inputs and codes have unit norm.
    """

    z: Tensor
    indices: Tensor
    inputs: Tensor
    codes: Tensor
    tables: Tensor


class Codebook(nn.Module):
    """V codes of width c, and how often each was chosen lately. They start near 0, where directions change quickly."""

    def __init__(self, size: int, width: int):
        super().__init__()
        bound = 1 / (36 * width**0.5)
        self.codes = nn.Parameter(torch.empty(size, width).uniform_(-bound, bound))
        self.register_buffer("usage", torch.zeros(size))


class MultiCodebookQuantizer(nn.Module):
    """Splits the channels into K chunks and replaces each by the nearest code of its own codebook.

    Args:
        vocab_size: codes of all codebooks together, K V.
        vocab_width: channels of the latent, K c.
        num_codebooks: K, a divisor of both.
        l2_norm: only directions count: chunks and codes are normalised first.
    """

    def __init__(self, vocab_size: int, vocab_width: int, num_codebooks: int = 1, l2_norm: bool = True):
        super().__init__()
        assert vocab_size % num_codebooks == 0 and vocab_width % num_codebooks == 0
        self.size = vocab_size // num_codebooks
        self.l2_norm = l2_norm
        self.codebooks = nn.ModuleList(Codebook(self.size, vocab_width // num_codebooks) for _ in range(num_codebooks))

    def forward(self, x: Tensor) -> Quantized:
        """Quantise x [B, K c, h, w], in fp32."""
        with full_precision(x.device):
            inputs = self._normalise(_split(x.float(), len(self.codebooks)))
            tables = self._tables()
            indices = _nearest(inputs, tables)
            codes = _look_up(tables, indices)
            z = codes.detach() + (inputs - inputs.detach())  # exactly the codes, with the gradient of the inputs
        return Quantized(_join(z), indices, inputs, codes, tables)

    def latent_to_tokens(self, z: Tensor) -> Tensor:
        """Latent [B, K c, h, w], quantised or not -> indices of the nearest codes [B, K, h, w]."""
        return self(z).indices

    def tokens_to_latent(self, tokens: Tensor) -> Tensor:
        """Indices [B, K, h, w], of any integer type -> the latent [B, K c, h, w] made of their codes.

        Raises: ShapeError if there is not one map of indices per codebook, UserError if an index has no code.
        """
        if tokens.ndim != 4 or tokens.shape[1] != len(self.codebooks):
            raise ShapeError(f"found tokens of shape {tuple(tokens.shape)}, expected [B, {len(self.codebooks)}, h, w].")
        tokens = tokens.long()  # the stored type, uint16, knows neither minimum nor maximum
        low, high = (bound.item() for bound in tokens.aminmax())
        if low < 0 or high >= self.size:
            raise UserError(f"found tokens from {low} to {high}, expected 0 to {self.size - 1}.")
        return _join(_look_up(self._tables(), tokens))

    def code_shares(self, indices: Tensor) -> Tensor:
        """How large a share of the positions of all ranks chose each code: [B, K, h, w] -> [K, V], rows of sum 1."""
        chosen = rearrange(indices, "b k h w -> k (b h w)")
        counts = torch.zeros(len(self.codebooks), self.size, device=indices.device)
        counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=counts.dtype))
        counts = all_reduce(counts)
        return counts / counts.sum(dim=1, keepdim=True)

    def track_usage(self, shares: Tensor, earlier: int) -> None:
        """Advance the moving average of how often each code is chosen.

        Args:
            shares: `code_shares` of a batch.
            earlier: batches that the average has seen. It starts as a copy of the first batch's shares, keeps 0.9 of
                its value up to the hundredth batch and 0.99 from then on.
        """
        kept = 0.0 if earlier == 0 else 0.9 if earlier < 100 else 0.99
        for codebook, share in zip(self.codebooks, shares, strict=True):
            codebook.usage.lerp_(share, 1 - kept)

    def _tables(self) -> Tensor:
        return self._normalise(torch.stack([codebook.codes for codebook in self.codebooks]))

    def _normalise(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.l2_norm else vectors


def usage_percent(shares: Tensor) -> Tensor:
    """Percentage of codes in use, mean over codebooks: those whose share [K, V] exceeds 0.01 / V."""
    return 100 * (shares > USED_SHARE / shares.shape[1]).float().mean()


def _split(x: Tensor, num_codebooks: int) -> Tensor:
    return rearrange(x, "b (k c) h w -> b k h w c", k=num_codebooks)


def _join(chunks: Tensor) -> Tensor:
    return rearrange(chunks, "b k h w c -> b (k c) h w")


@torch.no_grad()
def _nearest(inputs: Tensor, tables: Tensor) -> Tensor:
    """argmin_v |x - e_v|^2, [B, K, h, w]; one codebook at a time, for the similarities are the largest tensor."""
    halves = tables.square().sum(-1) / 2  # |x - e|^2 / 2 is x.x / 2 + this - x.e
    pairs = zip(inputs.unbind(1), tables, halves, strict=True)
    return torch.stack([(x @ table.mT - half).argmax(-1) for x, table, half in pairs], dim=1)


def _look_up(tables: Tensor, indices: Tensor) -> Tensor:
    """Codes [B, K, h, w, c] of the indices [B, K, h, w]."""
    return torch.stack([F.embedding(i, table) for i, table in zip(indices.unbind(1), tables, strict=True)], dim=1)
