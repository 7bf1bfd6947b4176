"""Configuration of the loss terms. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from common.config import Relation, StrictModel

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
    entropy_eps: PositiveFloat = Field(
        1e-7, description="Added to the codes' mean probabilities before the logarithm (published VFMTok: 1e-5)."
    )


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


class VFMTokGANTermConfig(TermConfig):
    """Adversarial loss of VFMTok, with the one discriminator that the run has."""

    disc_loss: Literal["hinge", "vanilla", "non-saturating"] = Field(
        "hinge", description="Loss of the discriminator; vanilla and non-saturating are the same cross-entropy."
    )
    gen_loss: Literal["softplus_g_loss", "hinge", "non-saturating"] = Field(
        "softplus_g_loss",
        description="Loss of the tokenizer; softplus_g_loss and non-saturating are the same cross-entropy.",
    )


class CLIPTermConfig(TermConfig):
    """Angle between CLIP features of the image and of its label text."""

    clip_path: str | None = Field(None, description="Local folder of CLIP ViT-L/14, as transformers saves it.")


@dataclass(frozen=True)
class TimeInterval:
    """Times from 0 (data) to 1 (noise) within which a path is used."""

    low: float
    high: float


Epsilon = Annotated[float, Field(ge=0, lt=0.5)]


class TransportConfig(StrictModel):
    """Flow matching between latents and noise, as LightningDiT is trained.

    `TRANSPORT_RELATIONS` says which combinations are refused.
    """

    path_type: Literal["Linear", "GVP", "VP"] = Field("Linear", description="Path between data and noise.")
    prediction: Literal["velocity", "noise", "score"] = Field("velocity", description="What the network gives.")
    loss_weight: Literal["velocity", "likelihood"] | None = Field(
        None, description="Weight of the squared error of a noise or score by time; null: 1."
    )
    train_eps: Epsilon | None = Field(
        None, description="Distance from the ends of the path where it is singular, in training; null: by the path."
    )
    sample_eps: Epsilon | None = Field(None, description="The same in sampling.")
    use_cosine_loss: bool = Field(False, description="Add 1 - the cosine of the velocity and its target.")
    use_lognorm: bool = Field(False, description="Draw times from the logit-normal distribution instead of evenly.")

    @property
    def regular(self) -> bool:
        """Whether what the network gives is finite at both ends of the path."""
        return self.prediction == "velocity" and self.path_type != "VP"

    @property
    def training_interval(self) -> TimeInterval:
        """The times that training draws from."""
        return self._interval(self.train_eps, 1e-5 if self.path_type == "VP" else 1e-3)

    @property
    def sampling_interval(self) -> TimeInterval:
        """The times that a sample passes through, from high to low."""
        return self._interval(self.sample_eps, 1e-3)

    def _interval(self, chosen: float | None, default: float) -> TimeInterval:
        if self.regular:
            return TimeInterval(0.0, 1.0)
        eps = default if chosen is None else chosen
        return TimeInterval(eps, 1.0 if self.path_type == "VP" else 1 - eps)


def _no_effect_on_regular(key: str) -> Relation:
    def check(transport: TransportConfig) -> str | None:
        value = getattr(transport, key)
        if value is not None and transport.regular:
            return (
                f"found {value:g}, but the velocity of the path {transport.path_type} needs no distance from its ends."
            )
        return None

    return Relation((key, "prediction", "path_type"), check)


def _weight_needs_other_prediction(transport: TransportConfig) -> str | None:
    if transport.loss_weight is None or transport.prediction != "velocity":
        return None
    return f'found "{transport.loss_weight}", but only the loss of a noise or score has a weight; expected null.'


def _cosine_needs_velocity(transport: TransportConfig) -> str | None:
    if not transport.use_cosine_loss or transport.prediction == "velocity":
        return None
    return f'found true, but prediction is "{transport.prediction}"; the cosine compares velocities.'


# Their keys are those of the section, and their checks take it.
TRANSPORT_RELATIONS = (
    _no_effect_on_regular("train_eps"),
    _no_effect_on_regular("sample_eps"),
    Relation(("loss_weight", "prediction"), _weight_needs_other_prediction),
    Relation(("use_cosine_loss", "prediction"), _cosine_needs_velocity),
)


class REGLossConfig(StrictModel):
    """Flow matching of the latent entangled with a class token, and alignment with the target encoder."""

    path_type: Literal["linear", "cosine"] = Field("linear", description="Path between data and noise.")
    weighting: Literal["uniform", "lognormal"] = Field(
        "uniform", description="Draw times evenly, or the ratio of noise to data from a log-normal distribution."
    )
    proj_coeff: NonNegativeFloat = Field(0.5, description="Weight of the alignment with the target encoder.")
    cls_weight: NonNegativeFloat = Field(0.03, description="Weight of the class token's denoising.")
