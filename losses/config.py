"""Configuration of the loss terms. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from common.config import StrictModel

# As a key of a mapping: JSON and `--set` can only write it as text.
Resolution = Annotated[PositiveInt, Field(strict=False)]


class TermConfig(StrictModel):
    """A loss term: its weight, and the window of training in which it counts."""

    weight: NonNegativeFloat = Field(description="Factor of the term in the objective; 0 switches it off.")
    start_kimg: NonNegativeFloat = Field(0, description="The term counts from here on (thousands of images seen).")
    end_kimg: NonNegativeFloat | None = Field(None, description="... and up to here, exclusive; null: to the end.")

    @property
    def enabled(self) -> bool:
        """Whether the term takes part in the run at all."""
        return self.weight > 0


class LPIPSConfig(TermConfig):
    """LPIPS on VGG16."""

    vgg16_path: str | None = Field(
        None, description="torchvision's vgg16-397923af.pth; null: looked for in the torch hub cache, never downloaded."
    )


class MultiscaleConfig(StrictModel):
    """L1 on the decoder's images of intermediate resolutions."""

    weights: dict[Resolution, NonNegativeFloat] = Field(description="Weight per resolution (side in pixels).")
    start_kimg: NonNegativeFloat = Field(0, description="The term counts from here on.")
    end_kimg: NonNegativeFloat | None = Field(2000, description="... and up to here, exclusive; null: to the end.")

    @property
    def enabled(self) -> bool:
        """Whether any resolution has a weight."""
        return sum(self.weights.values()) > 0

    @property
    def weight(self) -> float:
        """The term's own factor; the weights are per resolution."""
        return 1.0


class VFAlignmentConfig(TermConfig):
    """Alignment of the latent with the features of the vision foundation model."""

    use_adaptive_vf_loss: bool = Field(
        False, description="Scale the term to the reconstruction gradient at the latent projection."
    )
    distmat_margin: NonNegativeFloat = Field(0.0, description="Tolerated difference of pairwise cosines.")
    cos_margin: NonNegativeFloat = Field(0.0, description="Tolerated cosine distance.")
    distmat_weight: NonNegativeFloat = Field(1.0, description="Weight of the pairwise part.")
    cos_weight: NonNegativeFloat = Field(1.0, description="Weight of the pointwise part.")


class VQTermConfig(TermConfig):
    """Codebook and commitment loss of the quantiser."""

    vocab_beta: NonNegativeFloat = Field(0.25, description="Factor of the commitment part.")


class EntropyTermConfig(TermConfig):
    """Entropy loss of the soft assignment to codes."""

    entropy_temp: PositiveFloat = Field(0.01, description="Temperature of the assignment.")


class PatchGANTermConfig(TermConfig):
    """Adversarial loss of the PatchGAN discriminator."""

    loss_type: Literal["mse", "bce", "hinge"] = Field("mse", description="Form of the loss.")
    use_disc_warmup: bool = Field(False, description="Start when the StyleGAN-T loss has settled.")
    disable_reconstruction_when_patchgan: bool = Field(
        False, description="While this term counts, the reconstruction and latent terms do not."
    )


class StyleGANTTermConfig(TermConfig):
    """Adversarial loss of the StyleGAN-T discriminator."""

    use_disc_warmup: bool = Field(False, description="Start when the pixel loss has settled.")


class CLIPTermConfig(TermConfig):
    """Angle between CLIP features of the image and of its label text."""

    clip_path: str | None = Field(None, description="Local folder of CLIP ViT-L/14, as transformers saves it.")
