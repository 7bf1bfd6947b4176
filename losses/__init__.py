"""Losses compute scalars. Each is one file; the objective composes them by the names registered here.

Adding one: write `losses/<name>.py` with a `Loss` (or a `DiscriminatorLoss`), and add a line to `LOSSES`; it can then
be used by that name in the `losses:` section of a YAML of the systems that the line names. A loss with options of its
own also has a model in `losses/config.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.config import StrictModel
from common.registry import Registry
from losses import config as models


@dataclass(frozen=True)
class LossEntry:
    """A loss that a YAML may name.

    Args:
        target: `module:Class`.
        config: the model of its options.
        summary: one line for the documentation of the configuration.
        systems: whose objective it may be part of.
    """

    target: str
    config: type[StrictModel]
    summary: str
    systems: tuple[str, ...] = ("vfm_vae",)


_BOTH = ("vfm_vae", "vfmtok")

LOSSES: Registry = Registry(
    "loss",
    {
        "l1_pixel": LossEntry("losses.pixel:L1Loss", models.TermConfig, "Mean absolute pixel difference.", _BOTH),
        "l2_pixel": LossEntry("losses.pixel:L2Loss", models.TermConfig, "Mean squared pixel difference.", _BOTH),
        "multiscale_pixel": LossEntry(
            "losses.pixel:MultiscaleLoss", models.MultiscaleConfig, "L1 on the images of intermediate resolutions."
        ),
        "perceptual": LossEntry("losses.lpips:LPIPSLoss", models.LPIPSConfig, "LPIPS (VGG16, v0.1).", _BOTH),
        "efficientnet_perceptual": LossEntry(
            "losses.efficientnet_perceptual:EfficientNetPerceptualLoss",
            models.TermConfig,
            "Feature distance on EfficientNet-Lite0, whose weights are a dependency. Not LPIPS.",
            _BOTH,
        ),
        "kl": LossEntry("losses.kl:KLLoss", models.TermConfig, "KL divergence of the posterior from N(0, I)."),
        "vf": LossEntry(
            "losses.vf_alignment:VFAlignmentLoss", models.VFAlignmentConfig, "Alignment with the encoder's features."
        ),
        "ssim": LossEntry("losses.ssim:SSIMLoss", models.TermConfig, "1 - SSIM.", _BOTH),
        "stylegan_t": LossEntry(
            "losses.stylegan_t:StyleGANTLoss", models.StyleGANTTermConfig, "Adversarial: StyleGAN-T discriminator."
        ),
        "patchgan": LossEntry(
            "losses.patchgan:PatchGANLoss", models.PatchGANTermConfig, "Adversarial: PatchGAN discriminator."
        ),
        "feature_matching": LossEntry(
            "losses.feature_matching:FeatureMatchingLoss",
            models.TermConfig,
            "Feature matching of the PatchGAN discriminator.",
        ),
        "matching_aware": LossEntry(
            "losses.matching_aware:MatchingAwareLoss", models.TermConfig, "Discriminator on shuffled labels."
        ),
        "clip": LossEntry("losses.clip:CLIPLoss", models.CLIPTermConfig, "CLIP angle between image and label text."),
        "vq": LossEntry(
            "losses.vq:VQLoss", models.VQTermConfig, "Codebook and commitment loss (discrete mode).", _BOTH
        ),
        "entropy": LossEntry(
            "losses.entropy:EntropyLoss",
            models.EntropyTermConfig,
            "Entropy of the assignment to codes (discrete mode).",
            _BOTH,
        ),
        "semantic": LossEntry(
            "losses.semantic:SemanticLoss",
            models.TermConfig,
            "Cosine distance of predicted features of the encoder's last layer.",
            ("vfmtok",),
        ),
        "vfmtok_gan": LossEntry(
            "losses.vfmtok_gan:VFMTokGANLoss",
            models.VFMTokGANTermConfig,
            "Adversarial: the discriminator of VFMTok, of whichever kind.",
            ("vfmtok",),
        ),
    },
)


def losses_of(system: str) -> dict[str, LossEntry]:
    """The losses that a system's objective may be composed of, by name."""
    return {name: entry for name, entry in LOSSES.items() if system in entry.systems}
