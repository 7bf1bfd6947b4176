"""What the experiments that train a tokenizer have in common. Imports no torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from common.config import Relation, StrictModel
from configs.experiment import COMMON_RELATIONS, Experiment, micro_batches
from configs.losses import enabled_losses
from evaluation.config import FRECHET_METRICS
from networks.config import DISCRIMINATOR_RELATIONS, LOCAL_BATCH, TokenizerConfig, local_groups

if TYPE_CHECKING:
    from data.config import DataConfig
    from evaluation.config import ValidationConfig
    from networks.config import DiscriminatorConfig, EncoderConfig
    from networks.vfmtok.config import VFMTokConfig
    from trainer.config import (
        OptimizerConfig,
        TokenizerCheckpointConfig,
        TokenizerGuardConfig,
        TokenizerLoggingConfig,
        TokenizerTrainingConfig,
    )

# --- relations between sections ------------------------------------------------------------------------------


def _cls2text_needs_table(c) -> str | None:
    if c.data.label_type == "cls2text" and c.data.cls_to_text_path is None:
        return (
            "missing, but data.label_type is cls2text; give the JSON from class index to text, or set label_type: none."
        )
    return None


def _folders_only(leaf: str) -> Relation:
    def check(c) -> str | None:
        value = getattr(c.data, leaf)
        if value and c.data.source == "webdataset":
            return f"found {json.dumps(value)}, which only image folders and zip files have; data.source is webdataset."
        return None

    return Relation((f"data.{leaf}", "data.source"), check)


def _dino_path_is_used(c) -> str | None:
    if c.discriminator.dino_path is None or c.discriminator.backbone == "dino_vits16":
        return None
    return f"found {json.dumps(c.discriminator.dino_path)}, but discriminator.backbone is {c.discriminator.backbone}."


def _best_metric_is_measured(c) -> str | None:
    v = c.validation
    if v is None or v.best_metric in ("psnr", "ssim", None):
        return None
    key, measured = "perceptual", v.best_metric
    if v.best_metric in FRECHET_METRICS.values():
        key, measured = "frechet", next(name for name, metric in FRECHET_METRICS.items() if metric == v.best_metric)
    chosen = getattr(v, key)
    if chosen in ("auto", measured):
        return None
    return f"found {v.best_metric}, but validation.{key} is {chosen}, expected {measured}; or name psnr or ssim."


def _inception_path_is_used(c) -> str | None:
    v = c.validation
    if v is None or v.inception_path is None or v.frechet in ("auto", "inception"):
        return None
    return f"found {json.dumps(v.inception_path)}, but validation.frechet is {v.frechet}."


def _micro_batch_fits_local_norm(c) -> str | None:
    micro_batch, left_over = divmod(c.training.batch_size, micro_batches(c))
    if not c.discriminator.enabled or left_over or local_groups(micro_batch):
        return None
    return (
        f"leaves micro-batches of {micro_batch} images; the discriminators normalise over groups of at most "
        f"{LOCAL_BATCH}, so give at most {LOCAL_BATCH} or a multiple of {LOCAL_BATCH} images."
    )


TOKENIZER_TRAINING_RELATIONS: tuple[Relation, ...] = (
    *COMMON_RELATIONS,
    Relation(("data.cls_to_text_path", "data.label_type"), _cls2text_needs_table),
    _folders_only("max_size"),
    _folders_only("xflip"),
    *DISCRIMINATOR_RELATIONS,
    Relation(("discriminator.dino_path", "discriminator.backbone"), _dino_path_is_used),
    Relation(("training.batch_size", "training.accumulate_gradients"), _micro_batch_fits_local_norm),
    Relation(("validation.best_metric", "validation.perceptual", "validation.frechet"), _best_metric_is_measured),
    Relation(("validation.inception_path", "validation.frechet"), _inception_path_is_used),
)

_KEY_LIST = " imagenet_info/scan_keys.py writes it; null keeps every sample."


# --- the experiment --------------------------------------------------------------------------------------------


class TokenizerExperiment(Experiment):
    """A run that trains a tokenizer on a frozen vision foundation model.

    As in `Experiment`, each system declares these sections itself.
    """

    PATHS: ClassVar = (
        *Experiment.PATHS,
        "data.filter_keys_path",
        "data.cls_to_text_path",
        "validation.path",
        "validation.filter_keys_path",
        "validation.inception_path",
        "discriminator.dino_path",
        "losses.perceptual.vgg16_path",
    )
    MODELS: ClassVar = ("encoder.vfm_name",)
    REMEDIES: ClassVar = {"data.filter_keys_path": _KEY_LIST, "validation.filter_keys_path": _KEY_LIST}
    MAY_CHANGE: ClassVar = (
        *Experiment.MAY_CHANGE,
        "data.cls_to_text_path",
        "data.index_dir",
        "data.cache_dir",
        "data.cache_max_gb",
        "data.download_attempts",
        "data.download_timeout_s",
        "encoder.vfm_name",
        "losses.perceptual.vgg16_path",
        "discriminator.dino_path",
        "validation",
    )

    if TYPE_CHECKING:
        data: DataConfig
        encoder: EncoderConfig
        discriminator: DiscriminatorConfig
        losses: StrictModel
        optimizer: OptimizerConfig
        training: TokenizerTrainingConfig
        guard: TokenizerGuardConfig
        validation: ValidationConfig | None
        checkpoint: TokenizerCheckpointConfig
        logging: TokenizerLoggingConfig

    def tokenizer(self) -> TokenizerConfig | VFMTokConfig:
        """The part that decides the shape of the tokenizer."""
        raise NotImplementedError

    def enabled_losses(self) -> dict[str, StrictModel]:
        """The terms that take part in the run, by name."""
        return enabled_losses(self.losses)
