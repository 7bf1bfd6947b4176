"""The KL bottleneck: a diagonal Gaussian posterior per latent element."""

from __future__ import annotations

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


class DiagonalGaussian:
    """Posterior q(z | x) = N(mean, diag(exp(logvar))).

    Args:
        moments: [B, 2C, h, w]; mean in the first half of the channels, log-variance in the second, which is
            clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor):
        self.moments = moments
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(*LOGVAR_RANGE)

    @property
    def std(self) -> Tensor:
        """Standard deviation, [B, C, h, w]."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """z = mean + std * eps, [B, C, h, w].

        Args:
            generator: source of eps, which is drawn on the generator's device.
            noise: eps itself; drawn from `generator` when not given.
        """
        if noise is None:
            device = self.mean.device if generator is None else generator.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean)

    def mode(self) -> Tensor:
        """The mean, [B, C, h, w]."""
        return self.mean

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) of each sample, summed over the latent: 1/2 sum(mean^2 + exp(logvar) - 1 - logvar), [B]."""
        terms = self.mean.square() + (torch.expm1(self.logvar) - self.logvar)
        return 0.5 * terms.flatten(1).sum(1)


class PointMass:
    """The distribution of a latent that is certain, as that of a discrete bottleneck: all draws give the same.

    Args:
        z: [B, C, h, w].
    """

    def __init__(self, z: Tensor):
        self.mean = z

    @property
    def std(self) -> Tensor:
        """Zeros, [B, C, h, w]."""
        return torch.zeros_like(self.mean)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The latent, [B, C, h, w]; `generator` is not used."""
        return self.mean

    def mode(self) -> Tensor:
        """The latent, [B, C, h, w]."""
        return self.mean
