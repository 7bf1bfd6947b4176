"""What losses see and give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from networks.interfaces import Latent, Verdict

Group = Literal["reconstruction", "adversarial", "latent"]


@dataclass(frozen=True)
class LossInputs:
    """Everything that the tokenizer's losses may compare. Images are in [-1, 1], [B, 3, H, W].

    Attributes:
        target: real images, under the same equivariance transform as the reconstruction.
        reconstruction: the decoder's final image.
        pyramid: the decoder's images of intermediate resolutions, by nominal side.
        pyramid_targets: the target at the sides of these images.
        latent: what the encoder side made of the images; None where only images are compared.
        aligned_to: frozen features of the encoder's last layer as a map [B, D, h, w], for the VF loss.
        semantic: the features of the encoder's last layer as they are predicted from the latent, [B, N, D].
        semantic_target: these features themselves, frozen, [B, N, D].
        fake: what the discriminators say of the reconstruction; gradients flow into the image.
        real: what they say of the target; no gradient flows.
        texts: one text per image that says what it shows.
        generator: source of the draws of losses that need some, on the CPU.
    """

    target: Tensor
    reconstruction: Tensor
    pyramid: dict[int, Tensor] = field(default_factory=dict)
    pyramid_targets: dict[int, Tensor] = field(default_factory=dict)
    latent: Latent | None = None
    aligned_to: Tensor | None = None
    semantic: Tensor | None = None
    semantic_target: Tensor | None = None
    fake: Verdict | None = None
    real: Verdict | None = None
    texts: list[str] | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class DiscriminatorInputs:
    """Everything that the discriminators' losses may compare.

    Attributes:
        fake: what the discriminators say of reconstructions; gradients reach the discriminators only.
        real: what they say of the targets.
        fake_shuffled, real_shuffled: the same images, each with the label of another one.
    """

    fake: Verdict
    real: Verdict
    fake_shuffled: Verdict | None = None
    real_shuffled: Verdict | None = None


class Loss(nn.Module):
    """One term of the tokenizer's objective: a scalar from the inputs. Weight and window belong to the objective.

    Attributes:
        needs: fields of `LossInputs` that it reads.
        group: `reconstruction` compares images with their targets; the adaptive VF weight refers to the sum of these
            terms. `adversarial` is what other networks say of the reconstruction, and is left out of that sum.
            `latent` judges the latent itself, or the features that are predicted from it. The gradient of the first
            two reaches the latent through the decoder.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"target", "reconstruction"})
    group: ClassVar[Group] = "reconstruction"

    def forward(self, inputs: LossInputs) -> Tensor:
        raise NotImplementedError

    def details(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Further values for the log, by name."""
        return {}


class DiscriminatorLoss(nn.Module):
    """One term of the discriminators' objective. A class may be this and a `Loss`: the two sides of one game.

    Attributes:
        discriminator_needs: fields of `DiscriminatorInputs` that it reads.
    """

    discriminator_needs: ClassVar[frozenset[str]] = frozenset({"fake", "real"})

    def discriminator_loss(self, inputs: DiscriminatorInputs) -> Tensor:
        raise NotImplementedError

    def discriminator_details(self, inputs: DiscriminatorInputs) -> dict[str, Tensor]:
        """Further values for the log, by name."""
        return {}
