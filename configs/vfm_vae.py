"""The experiment `vfm_vae`: sections put together, relations between them, and what is derived from them.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from common.config import Relation
from configs.losses import loss_relations, losses_section, needs_switch, switch_is_used
from configs.tokenizer import TOKENIZER_TRAINING_RELATIONS, TokenizerExperiment
from data.config import DataConfig
from evaluation.config import ValidationConfig
from networks.config import (
    EQUIVARIANCE_SCALES,
    DecoderConfig,
    DiscriminatorConfig,
    EncoderConfig,
    LatentConfig,
    TokenizerConfig,
    geometry_problem,
    tokenizer_relations,
)
from trainer.config import (
    EquivarianceConfig,
    OptimizerConfig,
    RunConfig,
    TokenizerCheckpointConfig,
    TokenizerGuardConfig,
    TokenizerLoggingConfig,
    VFMVAETrainingConfig,
)

LossesConfig = losses_section("vfm_vae")


# --- relations between sections ------------------------------------------------------------------------------


def _vf_needs_last_layer(c) -> str | None:
    if c.losses.vf and c.losses.vf.enabled and -1 not in c.encoder.patch_from_layers:
        return (
            f"found {c.encoder.patch_from_layers}, expected a list that contains -1: losses.vf aligns with that layer."
        )
    return None


def _belongs_to_mode(loss: str, mode: str) -> Relation:
    def check(c) -> str | None:
        term, found = getattr(c.losses, loss), c.latent.compression_mode
        if term and term.enabled and found != mode:
            return (
                f"found {term.weight:g}, which needs latent.compression_mode: {mode}, found {found}; remove the term."
            )
        return None

    return Relation((f"losses.{loss}.weight", "latent.compression_mode"), check)


def _codebooks_learn(c) -> str | None:
    if c.latent.compression_mode == "continuous" or c.training.train_mode != "train_all":
        return None
    if any(term and term.enabled for term in (c.losses.vq, c.losses.entropy)):
        return None
    return (
        "has no weight, but latent.compression_mode is discrete: only this term and losses.entropy move its codebooks."
    )


def _multiscale_resolutions_exist(c) -> str | None:
    if not (c.losses.multiscale_pixel and c.losses.multiscale_pixel.enabled):
        return None
    if not c.decoder.use_multiscale_output:
        return "needs decoder.use_multiscale_output: true, found false."
    if c.data.resolution % (1 << (c.decoder.num_blocks - 1)):
        return None  # reported for data.resolution; the sides of the blocks mean nothing then
    sides = c.decoder.block_resolutions(c.data.resolution)[:-1]
    wrong = [side for side in c.losses.multiscale_pixel.weights if side not in sides]
    return f"found resolution {wrong[0]}, expected some of {sides} (the blocks below the last)." if wrong else None


def _equivariance_scales_fit(c) -> str | None:
    """Every scale that may be drawn must give whole token and latent grids, with sides that the branches accept."""
    if not c.equivariance.use_equivariance_regularization or geometry_problem(c, c.data.resolution):
        return None
    latent = c.data.resolution // c.latent.resolution_compression_factor
    multiple = c.decoder.latent_multiple(c.data.resolution, latent)
    per_position = c.data.resolution * c.encoder.scale_factor / latent  # encoder pixels behind a latent position
    step = math.lcm(int(per_position), c.encoder.pixel_multiple())
    for scale in EQUIVARIANCE_SCALES:
        side = c.data.resolution * scale
        if (latent * scale) % multiple:
            return (
                f"true, but scale {scale:g} leaves a latent of side {latent * scale:g}, which must be a multiple of "
                f"{multiple} for the latent branches; use a larger data.resolution or fewer decoder.num_blocks."
            )
        if side % 1 or (side * c.encoder.scale_factor) % step:
            return (
                f"true, but scale {scale:g} gives the encoder {side * c.encoder.scale_factor:g} pixels, which must be "
                f"a multiple of {step} ({per_position:g} per latent position, patches of "
                f"{c.encoder.pixel_multiple()})."
            )
    return None


def _recomputes_some_block(c) -> str | None:
    above = c.training.recompute_above_resolution
    if above is None or geometry_problem(c, c.data.resolution):
        return None
    sides = c.decoder.block_resolutions(c.data.resolution)
    return None if above < sides[-1] else f"found {above}, expected less than some block has: {sides}; or null."


def _conditional_decoder_has_labels(c) -> str | None:
    kinds = ("cls2text", "text") if c.decoder.reads_texts else ("cls2id", "cls2text")
    if c.decoder.conditional and c.data.label_type not in kinds:
        return (
            f"true with decoder.label_type {c.decoder.label_type} needs such labels; set data.label_type to "
            f"{' or '.join(kinds)}, found {c.data.label_type}."
        )
    return None


def _equivariance_needs_any_size(c) -> str | None:
    if c.equivariance.use_equivariance_regularization and not c.decoder.use_convnext:
        return "true, but it changes the size of the latent, and with decoder.use_convnext: false noise maps fix it."
    return None


def _matching_aware_needs_labels(c) -> str | None:
    term = c.losses.matching_aware
    if term and term.enabled and not c.decoder.conditional:
        return f"found {term.weight:g}, which needs decoder.conditional: true; else no discriminator sees a label."
    return None


def _clip_needs_texts(c) -> str | None:
    term = c.losses.clip
    if term and term.enabled and c.data.label_type not in ("cls2text", "text"):
        return f"found {term.weight:g}, which needs data.label_type cls2text or text, found {c.data.label_type}."
    return None


def _warmup_waits_for(term: str, awaited: Sequence[str]) -> Relation:
    """A discriminator is held back until another loss has settled; that loss must be there."""

    def check(c) -> str | None:
        waits = getattr(c.losses, term)
        others = [getattr(c.losses, name) for name in awaited]
        if waits and waits.enabled and waits.use_disc_warmup and not any(o and o.enabled for o in others):
            return f"true waits for losses.{' or losses.'.join(awaited)} to settle; give it a weight above 0."
        return None

    keys = (f"losses.{term}.use_disc_warmup", *(f"losses.{name}" for name in (term, *awaited)))
    return Relation(keys, check)


def _stylegan2_belongs_to_vfmtok(c) -> str | None:
    if c.discriminator.use_stylegan2_discriminator:
        return "true, but only losses.vfmtok_gan of the system vfmtok uses it; set it false."
    return None


def _shared_pass_needs_one_micro_batch(c) -> str | None:
    if not c.training.share_generator_forward or c.training.accumulate_gradients == 1:
        return None
    return (
        f"true keeps the pass of every micro-batch alive until the tokenizer's phase, which is what training."
        f"accumulate_gradients {c.training.accumulate_gradients} is there to avoid; set one of them to its default."
    )


RELATIONS: tuple[Relation, ...] = (
    *TOKENIZER_TRAINING_RELATIONS,
    *tokenizer_relations("data.resolution", lambda c: c.data.resolution),
    Relation(("encoder.patch_from_layers", "losses.vf"), _vf_needs_last_layer),
    _belongs_to_mode("kl", "continuous"),
    _belongs_to_mode("vq", "discrete"),
    _belongs_to_mode("entropy", "discrete"),
    Relation(("losses.vq", "losses.entropy", "latent.compression_mode", "training.train_mode"), _codebooks_learn),
    Relation(
        ("losses.multiscale_pixel", "decoder.use_multiscale_output", "decoder.num_blocks", "data.resolution"),
        _multiscale_resolutions_exist,
    ),
    *loss_relations("vfm_vae"),
    Relation(
        (
            "equivariance.use_equivariance_regularization",
            "data.resolution",
            "latent.resolution_compression_factor",
            "decoder.num_blocks",
            "decoder.concat_z_block_indices",
            "encoder.vfm_name",
            "encoder.family",
            "encoder.revision",
            "encoder.patch_from_layers",
            "encoder.scale_factor",
        ),
        _equivariance_scales_fit,
    ),
    Relation(
        ("training.recompute_above_resolution", "data.resolution", "decoder", "encoder", "latent"),
        _recomputes_some_block,
    ),
    Relation(("training.share_generator_forward", "training.accumulate_gradients"), _shared_pass_needs_one_micro_batch),
    Relation(("decoder.conditional", "decoder.label_type", "data.label_type"), _conditional_decoder_has_labels),
    Relation(("equivariance.use_equivariance_regularization", "decoder.use_convnext"), _equivariance_needs_any_size),
    needs_switch("stylegan_t", "use_stylegan_t_discriminator"),
    needs_switch("matching_aware", "use_stylegan_t_discriminator"),
    needs_switch("patchgan", "use_patchgan_discriminator"),
    needs_switch("feature_matching", "use_patchgan_discriminator"),
    needs_switch("feature_matching", "get_interm_feat"),
    switch_is_used("use_stylegan_t_discriminator", ("stylegan_t", "matching_aware")),
    switch_is_used("use_patchgan_discriminator", ("patchgan", "feature_matching")),
    Relation(("discriminator.use_stylegan2_discriminator",), _stylegan2_belongs_to_vfmtok),
    Relation(("losses.matching_aware.weight", "decoder.conditional"), _matching_aware_needs_labels),
    Relation(("losses.clip.weight", "data.label_type"), _clip_needs_texts),
    _warmup_waits_for("stylegan_t", ("l1_pixel", "l2_pixel")),
    _warmup_waits_for("patchgan", ("stylegan_t",)),
)

# --- the experiment --------------------------------------------------------------------------------------------


class VFMVAEExperiment(TokenizerExperiment):
    """A run of the system `vfm_vae`: training of a tokenizer on a frozen vision foundation model."""

    RELATIONS: ClassVar = RELATIONS
    PATHS: ClassVar = (*TokenizerExperiment.PATHS, "losses.clip.clip_path")
    MAY_CHANGE: ClassVar = (
        *TokenizerExperiment.MAY_CHANGE,
        "training.compile",
        "training.recompute_above_resolution",
    )

    system: Literal["vfm_vae"] = Field("vfm_vae", description="What is trained.")
    run: RunConfig
    data: DataConfig
    encoder: EncoderConfig
    latent: LatentConfig
    decoder: DecoderConfig
    equivariance: EquivarianceConfig = EquivarianceConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    losses: LossesConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    training: VFMVAETrainingConfig
    guard: TokenizerGuardConfig = TokenizerGuardConfig()
    validation: ValidationConfig | None = None
    checkpoint: TokenizerCheckpointConfig = TokenizerCheckpointConfig()
    logging: TokenizerLoggingConfig = TokenizerLoggingConfig()

    def tokenizer(self) -> TokenizerConfig:
        """The part that decides the shape of the tokenizer."""
        return TokenizerConfig(
            img_resolution=self.data.resolution,
            encoder=self.encoder,
            latent=self.latent,
            decoder=self.decoder,
            alignment_head=bool(self.losses.vf and self.losses.vf.enabled),
        )
