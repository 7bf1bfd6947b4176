"""Classifier-free guidance: away from the velocity without a class, towards the one with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError


@dataclass(frozen=True)
class Guidance:
    """How strongly, where and when samples are guided.

    Attributes:
        scale: 1 is the conditional velocity itself; nothing is guided at 1 or below.
        channels: how many of the first latent channels are guided; None: all. LightningDiT's published scales
            belong to 3 of its 32 channels.
        low, high: times between which, both included, samples are guided; t = 0 is data, t = 1 is noise.
            LightningDiT's `cfg_interval_start` s is high = 1 - s.

    Raises: UserError if the interval is empty or `channels` is not positive.
    """

    scale: float = 1.0
    channels: int | None = None
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise UserError(f"guidance from t = {self.low} to {self.high}: expected low <= high.")
        if self.channels is not None and self.channels < 1:
            raise UserError(f"guidance of {self.channels} channels: expected at least 1, or all.")

    def acts_at(self, t: float) -> bool:
        """Whether the velocity at a time is guided; where not, the one without a class need not be computed."""
        return self.scale > 1 and self.low <= t <= self.high


def combine(conditional: Tensor, unconditional: Tensor, scale: float, channels: int | None = None) -> Tensor:
    """v_n + scale (v_c - v_n) on the first channels; the others keep the conditional velocity.

    Args:
        conditional: v_c, the velocity with a class, [B, C, ...].
        unconditional: v_n, the velocity with the null class, of the same shape.
        channels: how many channels are guided; None: all.

    Ho and Salimans, arXiv 2207.12598, equation 6.
    """
    if channels is None or channels >= conditional.shape[1]:
        return torch.lerp(unconditional, conditional, scale)
    guided = torch.lerp(unconditional[:, :channels], conditional[:, :channels], scale)
    return torch.cat([guided, conditional[:, channels:]], dim=1)


def guided_velocity(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    t: float,
    y: Tensor,
    null_label: int,
    guidance: Guidance,
) -> Tensor:
    """The velocity that a sampler follows, at one time for the whole batch.

    Where guidance acts, the network runs once on 2B samples; elsewhere on B, with the same result as if it had not.

    Args:
        velocity: (x, t, y) -> velocity, with t = 0 for data.
        x: [B, C, H, W].
        t: in [0, 1].
        y: class labels, [B].
        null_label: the label that stands for no class.
    """
    if not guidance.acts_at(t):
        return velocity(x, x.new_full((len(x),), t), y)
    labels = torch.cat([y, torch.full_like(y, null_label)])
    both = velocity(torch.cat([x, x]), x.new_full((2 * len(x),), t), labels)
    conditional, unconditional = both.chunk(2)
    return combine(conditional, unconditional, guidance.scale, guidance.channels)
