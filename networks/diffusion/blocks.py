"""The adaLN-Zero transformer block of DiT (arXiv 2212.09748), with the parts that LightningDiT exchanges.

B batch, N tokens, D width, d size of a head. Names of parameters are the reference's.
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from networks.diffusion.embeddings import RotaryEmbedding
from networks.layers.dot_product_attention import attend
from networks.layers.norm import RMSNorm
from networks.layers.swiglu import SwiGLU


@dataclass(frozen=True)
class BlockDesign:
    """What a block is made of.

    Attributes:
        width: D.
        heads: attention heads.
        hidden: int(D * mlp_ratio), width of the feed-forward layer; SwiGLU takes two thirds of it.
        rms_norm: RMSNorm everywhere; otherwise LayerNorm, which has weights only on queries and keys.
        qk_norm: queries and keys of each head are normalised.
        swiglu: SwiGLU instead of GELU.
        shift: modulation by scale, shift and gate; otherwise without the shift.
    """

    width: int
    heads: int
    hidden: int
    rms_norm: bool = False
    qk_norm: bool = False
    swiglu: bool = False
    shift: bool = True

    def token_norm(self) -> nn.Module:
        """The normalisation of tokens that a modulation follows."""
        return RMSNorm(self.width) if self.rms_norm else nn.LayerNorm(self.width, eps=1e-6, elementwise_affine=False)

    def head_norm(self) -> nn.Module:
        """The normalisation of queries or keys."""
        size = self.width // self.heads
        if not self.qk_norm:
            return nn.Identity()
        return RMSNorm(size) if self.rms_norm else nn.LayerNorm(size, eps=1e-5)

    def feed_forward(self) -> nn.Module:
        """The feed-forward layer."""
        if self.swiglu:
            return SwiGLU(self.width, int(2 / 3 * self.hidden))
        return GeluMLP(self.width, self.hidden)


class GeluMLP(nn.Module):
    """Linear, GELU (tanh), Linear on tokens [B, N, D]."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Attention(nn.Module):
    """Multi-head self-attention on tokens [B, N, D], with optional norms and rotary positions of queries and keys."""

    def __init__(self, design: BlockDesign):
        super().__init__()
        self.heads = design.heads
        self.qkv = nn.Linear(design.width, 3 * design.width)
        self.q_norm = design.head_norm()
        self.k_norm = design.head_norm()
        self.proj = nn.Linear(design.width, design.width)

    def forward(self, x: Tensor, rope: RotaryEmbedding | None = None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three g d) -> three b g n d", three=3, g=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rope(q), rope(k)
        # Under autocast norms and rotation give fp32; a fast kernel wants all three in one precision.
        attended = attend(q.to(v.dtype), k.to(v.dtype), v)  # [B, heads, N, d]
        return self.proj(rearrange(attended, "b g n d -> b n (g d)"))


def modulate(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """x (1 + scale) + shift, the same for all tokens; x [B, N, D], scale and shift [B, D]."""
    scaled = x * (1 + scale[:, None])
    return scaled if shift is None else scaled + shift[:, None]


def modulation(width: int, parts: int) -> nn.Sequential:
    """What computes shifts, scales and gates from the condition: [B, D] -> [B, parts * D]."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class Block(nn.Module):
    """Attention and feed-forward, each between a modulated norm and a gate that starts at 0."""

    def __init__(self, design: BlockDesign):
        super().__init__()
        self.shift = design.shift
        self.norm1 = design.token_norm()
        self.norm2 = design.token_norm()
        self.attn = Attention(design)
        self.mlp = design.feed_forward()
        self.adaLN_modulation = modulation(design.width, 6 if design.shift else 4)

    def forward(self, x: Tensor, c: Tensor, rope: RotaryEmbedding | None = None) -> Tensor:
        """Tokens [B, N, D] under the condition [B, D] -> tokens."""
        shift1 = shift2 = None
        if self.shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        else:
            scale1, gate1, scale2, gate2 = self.adaLN_modulation(c).chunk(4, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), scale1, shift1), rope)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), scale2, shift2))


@dataclass(frozen=True)
class Predicted:
    """What the last layer says of tokens.

    Attributes:
        patches: of every patch, [B, N, p*p*C].
        class_token: of the class token, [B, class width]; None where the network has none.
    """

    patches: Tensor
    class_token: Tensor | None = None


class FinalLayer(nn.Module):
    """Modulated norm and a linear layer for the patches; another one for a class token, which is token 0.

    Args:
        channels: outputs per patch.
        class_width: outputs of the class token; None: the network has none.
    """

    def __init__(self, design: BlockDesign, channels: int, class_width: int | None = None):
        super().__init__()
        self.norm_final = design.token_norm()
        self.linear = nn.Linear(design.width, channels)
        self.linear_cls = nn.Linear(design.width, class_width) if class_width is not None else None
        self.adaLN_modulation = modulation(design.width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Predicted:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        x = modulate(self.norm_final(x), scale, shift)
        if self.linear_cls is None:
            return Predicted(self.linear(x))
        return Predicted(self.linear(x[:, 1:]), self.linear_cls(x[:, 0]))
