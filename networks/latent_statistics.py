"""Mean and standard deviation of latents, channel by channel, over any number of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.errors import UserError


class LatentStatistics:
    """Running mean and squared deviation of each channel in float64; latents may come in batches of any size.

    Updating is exact: batches, and the statistics of several processes, are merged by
    n = n_a + n_b,  d = mean_b - mean_a,  mean = mean_a + d n_b / n,  M2 = M2_a + M2_b + d^2 n_a n_b / n.

    Args:
        channels: C of the latents.
    """

    def __init__(self, channels: int):
        self.count = 0  # of values per channel
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def update(self, z: Tensor) -> None:
        """Take in latents [B, C, h, w]."""
        values = z.detach().to("cpu", torch.float64).movedim(1, 0).flatten(1)  # [C, B*h*w]
        mean = values.mean(dim=1)
        self._merge(values.shape[1], mean, (values - mean[:, None]).square().sum(dim=1))

    def merge(self, other: LatentStatistics) -> None:
        """Take in what another process has seen."""
        self._merge(other.count, other._mean, other._squares)

    def to_values(self) -> dict[str, Any]:
        """What has been seen, as numbers that JSON keeps exactly."""
        return {"count": self.count, "mean": self._mean.tolist(), "squared_deviation": self._squares.tolist()}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> LatentStatistics:
        """The statistics that `to_values` described."""
        statistics = cls(len(values["mean"]))
        statistics.count = values["count"]
        statistics._mean = torch.tensor(values["mean"], dtype=torch.float64)
        statistics._squares = torch.tensor(values["squared_deviation"], dtype=torch.float64)
        return statistics

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        if count == 0:
            return
        difference = mean - self._mean
        self._mean = self._mean + difference * (count / total)
        self._squares = self._squares + squares + difference.square() * (self.count * count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Mean of each channel, [C]."""
        return self._mean

    @property
    def std(self) -> Tensor:
        """Standard deviation of each channel, [C], with the unbiased divisor n - 1.

        Raises: UserError where it is 0 or not finite, or there are fewer than two values.
        """
        std = (self._squares / max(self.count - 1, 1)).sqrt()
        if self.count < 2 or not (std > 0).all() or not std.isfinite().all():
            raise UserError(
                f"latent statistics: {self.count} values per channel have the standard deviations "
                f"{[float(f'{value:.3g}') for value in std.tolist()]}, expected finite ones above 0; use more images."
            )
        return std

    @property
    def scaling_factor(self) -> float:
        """1 over the standard deviation of all values of all channels, about their common mean.

        The factor of latent diffusion (arXiv:2112.10752): it brings the latent to unit variance while
        keeping the proportions of its channels.
        """
        centred = self._mean - self._mean.mean()
        variance = (self.std.square() * (self.count - 1) / self.count + centred.square()).mean()
        return float(variance.rsqrt())
