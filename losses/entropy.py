"""Entropy loss of a soft assignment to codes: sure for each position, even over the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.config import EntropyTermConfig
from losses.interfaces import Loss, LossInputs


def entropy_loss(inputs: Tensor, table: Tensor, temperature: float, epsilon: float = 1e-7) -> Tensor:
    """mean_n H(P_n) - H(mean_n P_n) with P_n = softmax_v(-||f_n - e_v||^2 / temperature).

    Args:
        inputs: f, [N, c].
        table: all codes e of a codebook, [V, c].
        epsilon: added to the mean probabilities before their logarithm is taken.
    """
    # ||f||^2 is the same for all codes, so the softmax does not see it
    logits = (2 * inputs @ table.mT - table.square().sum(-1)) / temperature  # [N, V]
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    mean_p = p.mean(0)
    of_each = -(p * log_p).sum(-1).mean()
    of_mean = -(mean_p * (mean_p + epsilon).log()).sum()
    return of_each - of_mean


class EntropyLoss(Loss):
    """`entropy_loss` of this micro-batch, mean over codebooks."""

    needs = frozenset({"latent"})
    group = "latent"

    def __init__(self, config: EntropyTermConfig):
        super().__init__()
        self.temperature, self.epsilon = config.entropy_temp, config.entropy_eps

    def forward(self, inputs: LossInputs) -> Tensor:
        quantized = inputs.latent.quantized
        chunks = quantized.inputs.transpose(0, 1).flatten(1, -2)  # [K, positions, c]
        pairs = zip(chunks, quantized.tables, strict=True)
        return torch.stack(
            [entropy_loss(chunk, table, self.temperature, self.epsilon) for chunk, table in pairs]
        ).mean()
