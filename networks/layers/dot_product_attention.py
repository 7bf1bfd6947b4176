"""Softmax attention, in the precision that is fastest on the device."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from common.precision import full_precision


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v on [B, heads, N, d].

    In fp32 on the CPU, where the bf16 kernel is several times slower on sequences of this length.

    Args:
        mask: boolean, broadcasts to [B, heads, N_q, N_k]; True where a query may attend to a key.
        causal: query i attends to the keys up to i; in place of a mask.
        dropout: probability of dropping a weight, drawn from torch's own generator.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
    with full_precision(q.device):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, dropout, causal)
