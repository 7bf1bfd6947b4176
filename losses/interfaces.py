"""What a loss sees and gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from networks.interfaces import Latent


@dataclass(frozen=True)
class LossInputs:
    """Everything that losses may compare. Images are in [-1, 1], [B, 3, H, W].

    Attributes:
        target: real images, under the same equivariance transform as the reconstruction.
        reconstruction: the decoder's final image.
        pyramid: the decoder's images of intermediate resolutions, by nominal side.
        pyramid_targets: the target at the sides of these images.
        latent: what the encoder side made of the images; None where only images are compared.
        aligned_to: frozen features of the encoder's last layer as a map [B, D, h, w], for the VF loss.
    """

    target: Tensor
    reconstruction: Tensor
    pyramid: dict[int, Tensor] = field(default_factory=dict)
    pyramid_targets: dict[int, Tensor] = field(default_factory=dict)
    latent: Latent | None = None
    aligned_to: Tensor | None = None


class Loss(nn.Module):
    """One term of the objective: a scalar from the inputs. Its weight and window belong to the objective.

    Attributes:
        needs: fields of `LossInputs` that it reads.
        compares_images: True for reconstruction losses, whose gradient reaches the latent through the decoder; the
            adaptive VF weight refers to their sum. False for terms on the latent itself.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"target", "reconstruction"})
    compares_images: ClassVar[bool] = True

    def forward(self, inputs: LossInputs) -> Tensor:
        raise NotImplementedError

    def details(self) -> dict[str, Tensor]:
        """Further values of the last call, for the log, by name."""
        return {}
