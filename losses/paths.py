"""Paths between data and noise, as flow matching and diffusion use them.

t runs from 0 (data) to 1 (noise); every velocity is dx/dt, which points towards the noise:

    x_t = alpha(t) data + sigma(t) noise        v = alpha' data + sigma' noise

The same path is also the solution of the stochastic equation dx = f dt + sqrt(2 g) dW with f = x alpha' / alpha and
g = sigma sigma' - sigma^2 alpha' / alpha. From it follow the velocity of a score, v = f - g score, and the reverse.

Source: Albergo et al., "Stochastic Interpolants" (arXiv:2303.08797); Ma et al., "SiT" (arXiv:2401.08740), whose code
counts time for these paths from the noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


def along(t: Tensor, x: Tensor) -> Tensor:
    """Times [B], shaped to multiply a tensor [B, ...] sample by sample."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Coefficients:
    """alpha and sigma of a path at some times, and their derivatives by t, all of the shape of the times."""

    alpha: Tensor
    sigma: Tensor
    alpha_slope: Tensor
    sigma_slope: Tensor


@dataclass(frozen=True)
class PathPoint:
    """Where a pair of data and noise is at time t.

    Attributes:
        x: x_t, [B, ...].
        velocity: dx/dt there, what a flow-matching network is trained to give.
        noise: the noise of the pair.
        t: [B].
    """

    x: Tensor
    velocity: Tensor
    noise: Tensor
    t: Tensor


class Path(ABC):
    """A path from data to noise.

    `coefficients`, `growth` and `diffusion` take times of any shape; where there is a state, it is [B, ...] and t [B].
    """

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their derivatives."""

    @abstractmethod
    def growth(self, t: Tensor) -> Tensor:
        """alpha' / alpha, so that f = growth x."""

    def diffusion(self, t: Tensor) -> Tensor:
        """g: half the variance that the stochastic equation adds per unit of time."""
        at = self.coefficients(t)
        return at.sigma * at.sigma_slope - at.sigma.square() * self.growth(t)

    def point(self, data: Tensor, noise: Tensor, t: Tensor) -> PathPoint:
        """The point at times [B] between pairs of data and noise of one shape [B, ...]."""
        at = self.coefficients(along(t, data))
        return PathPoint(
            x=at.alpha * data + at.sigma * noise,
            velocity=at.alpha_slope * data + at.sigma_slope * noise,
            noise=noise,
            t=t,
        )

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f of the stochastic equation."""
        return self.growth(along(t, x)) * x

    def score_from_velocity(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x) = (alpha v - alpha' x) / (alpha' sigma^2 - alpha sigma sigma'); t must be above 0."""
        at = self.coefficients(along(t, x))
        scale = at.alpha_slope * at.sigma.square() - at.alpha * at.sigma * at.sigma_slope
        return (at.alpha * velocity - at.alpha_slope * x) / scale

    def velocity_from_score(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """v = f - g score; on the linear and the GVP path t must be below 1."""
        return self.drift(x, t) - self.diffusion(along(t, x)) * score

    def velocity_from_noise(self, noise: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """`velocity_from_score` of the score -noise / sigma; t must be above 0."""
        return self.velocity_from_score(-noise / self.coefficients(along(t, x)).sigma, x, t)


class LinearPath(Path):
    """alpha = 1 - t, sigma = t: the rectified flow of LightningDiT and REG."""

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)

    def growth(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)


class GVPPath(Path):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), which keeps the variance; REG calls it cosine."""

    def coefficients(self, t: Tensor) -> Coefficients:
        angle = t * (math.pi / 2)
        alpha, sigma = torch.cos(angle), torch.sin(angle)
        return Coefficients(alpha, sigma, -math.pi / 2 * sigma, math.pi / 2 * alpha)

    def growth(self, t: Tensor) -> Tensor:
        return -math.pi / (2 * torch.tan((1 - t) * (math.pi / 2)))


class VPPath(Path):
    """The variance-preserving diffusion of Song et al. (arXiv:2011.13456), with beta(t) from 0.1 to 20.

    Its velocity is infinite at t = 0, and a trace of the data is left at t = 1.
    """

    beta_0, beta_1 = 0.1, 20.0

    def coefficients(self, t: Tensor) -> Coefficients:
        log_alpha = -0.25 * t.square() * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0
        growth = self.growth(t)
        alpha, sigma = torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))
        return Coefficients(alpha, sigma, alpha * growth, -alpha.square() * growth / sigma)

    def growth(self, t: Tensor) -> Tensor:
        return -self.diffusion(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """beta(t) / 2."""
        return 0.5 * (self.beta_0 + t * (self.beta_1 - self.beta_0))


PATHS: dict[str, Path] = {"Linear": LinearPath(), "GVP": GVPPath(), "VP": VPPath()}
