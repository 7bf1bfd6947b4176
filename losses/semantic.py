"""Semantic reconstruction objective (VFMTok, arXiv 2507.08441)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from common.errors import ShapeError
from losses.config import TermConfig
from losses.interfaces import Loss, LossInputs

SMALLEST_NORM = 1e-6


def semantic_loss(predicted: Tensor, features: Tensor) -> Tensor:
    """L = mean over images and patches of 1 - cos(f, F), with norms of at least 1e-6.

    Args:
        predicted: features f as they are predicted from the latent, [B, N, D].
        features: the frozen features F of the encoder, [B, N, D]. No gradient flows into them.

    Returns: scalar from 0 to 2, fp32.
    Raises: ShapeError if the shapes differ.
    """
    if predicted.shape != features.shape:
        raise ShapeError(f"predicted features {list(predicted.shape)} and features {list(features.shape)} must agree.")
    cosine = F.cosine_similarity(predicted.float(), features.detach().float(), dim=-1, eps=SMALLEST_NORM)  # [B, N]
    return 1 - cosine.mean()


class SemanticLoss(Loss):
    """`semantic_loss` of the features that the tokenizer predicts for the encoder's last layer."""

    needs = frozenset({"semantic", "semantic_target"})
    group = "latent"

    def __init__(self, config: TermConfig):
        super().__init__()

    def forward(self, inputs: LossInputs) -> Tensor:
        return semantic_loss(inputs.semantic, inputs.semantic_target)
