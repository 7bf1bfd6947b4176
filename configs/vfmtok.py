"""The experiment `vfmtok`: sections put together, and relations between them. Imports no torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from common.config import Relation
from configs.losses import ONE_DISCRIMINATOR, loss_relations, losses_section
from configs.tokenizer import TOKENIZER_TRAINING_RELATIONS, TokenizerExperiment
from data.config import DataConfig
from evaluation.config import ValidationConfig
from networks.config import DiscriminatorConfig, EncoderConfig
from networks.vfmtok.config import (
    CodebookConfig,
    DecodeTransformerConfig,
    PixelDecoderConfig,
    RegionEncoderConfig,
    VFMTokConfig,
    vfmtok_relations,
)
from trainer.config import (
    OptimizerConfig,
    RunConfig,
    TokenizerCheckpointConfig,
    TokenizerGuardConfig,
    TokenizerLoggingConfig,
    VFMTokTrainingConfig,
)

LossesConfig = losses_section("vfmtok")


def _codebook_learns(c: Any) -> str | None:
    if any(term and term.enabled for term in (c.losses.vq, c.losses.entropy)):
        return None
    return "has no weight, but only this term and losses.entropy move the codebook."


def _no_labels(c: Any) -> str | None:
    if c.data.label_type == "none":
        return None
    return f'found "{c.data.label_type}", expected "none": no part of this tokenizer reads labels.'


class VFMTokExperiment(TokenizerExperiment):
    """A run of the system `vfmtok`: training of a discrete tokenizer on a frozen vision foundation model."""

    RELATIONS: ClassVar = (
        *TOKENIZER_TRAINING_RELATIONS,
        *vfmtok_relations("data.resolution", lambda c: c.data.resolution),
        *loss_relations("vfmtok"),
        ONE_DISCRIMINATOR,
        Relation(("losses.vq", "losses.entropy"), _codebook_learns),
        Relation(("data.label_type",), _no_labels),
    )

    system: Literal["vfmtok"] = Field("vfmtok", description="What is trained.")
    run: RunConfig
    data: DataConfig
    encoder: EncoderConfig
    region_encoder: RegionEncoderConfig = RegionEncoderConfig()
    codebook: CodebookConfig = CodebookConfig()
    decode_transformer: DecodeTransformerConfig = DecodeTransformerConfig()
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    losses: LossesConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    training: VFMTokTrainingConfig
    guard: TokenizerGuardConfig = TokenizerGuardConfig()
    validation: ValidationConfig | None = None
    checkpoint: TokenizerCheckpointConfig = TokenizerCheckpointConfig()
    logging: TokenizerLoggingConfig = TokenizerLoggingConfig()

    def tokenizer(self) -> VFMTokConfig:
        return VFMTokConfig(
            img_resolution=self.data.resolution,
            encoder=self.encoder,
            region_encoder=self.region_encoder,
            codebook=self.codebook,
            decode_transformer=self.decode_transformer,
            pixel_decoder=self.pixel_decoder,
        )
