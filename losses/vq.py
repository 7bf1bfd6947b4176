"""Codebook and commitment loss of vector quantisation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from losses.config import VQTermConfig
from losses.interfaces import Loss, LossInputs


class VQLoss(Loss):
    """beta * mse(sg(e), f) + mse(e, sg(f)) of the inputs f and the codes e chosen for them, both normalised.

    The first part commits the encoder side to its codes, the second moves the codes; sg stops the gradient, mse is the
    mean over all elements of all codebooks.
    """

    needs = frozenset({"latent"})
    group = "latent"

    def __init__(self, config: VQTermConfig):
        super().__init__()
        self.beta = config.vocab_beta

    def forward(self, inputs: LossInputs) -> Tensor:
        quantized = inputs.latent.quantized
        commitment = F.mse_loss(quantized.inputs, quantized.codes.detach())
        return self.beta * commitment + F.mse_loss(quantized.codes, quantized.inputs.detach())
