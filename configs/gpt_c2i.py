"""The experiment `gpt_c2i`: class-conditional autoregressive models of a tokenizer's tokens. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from common.config import Relation, in_section
from configs.experiment import COMMON_RELATIONS
from configs.generator import GeneratorExperiment
from data.config import GPTDataConfig
from networks.ar.config import GPT_RELATIONS, FrozenTokenizerConfig, GPTConfig, TokenSamplingConfig
from trainer.config import (
    CheckpointConfig,
    GPTAdamConfig,
    GPTTrainingConfig,
    GuardConfig,
    LoggingConfig,
    RunConfig,
)


def _tokenizer_where_needed(c: GPTExperiment) -> str | None:
    if c.data.source == "images" and c.tokenizer.vae_pth is None:
        return "missing, but data.source: images needs a tokenizer that makes tokens of them."
    if c.data.source == "tokens" and c.tokenizer.vae_pth is not None:
        return "names a tokenizer, but data.source: tokens reads what one has made beforehand; leave one of them out."
    return None


def _option_of_folders(c: GPTExperiment) -> str | None:
    unused = "max_size" if c.data.max_size is not None else "xflip" if c.data.xflip else None
    if unused is None:
        return None
    return f"data.{unused} is an option of image folders and .zip files, which this system does not read."


class GPTExperiment(GeneratorExperiment):
    """A run of the system `gpt_c2i`: training of an autoregressive model."""

    RELATIONS: ClassVar = (
        *COMMON_RELATIONS,
        *in_section("network", GPT_RELATIONS),
        Relation(("tokenizer.vae_pth", "data.source"), _tokenizer_where_needed),
        Relation(("data.source", "data.max_size", "data.xflip"), _option_of_folders),
    )
    PATHS: ClassVar = (*GeneratorExperiment.PATHS, "data.filter_keys_path", "tokenizer.vae_pth")
    MAY_CHANGE: ClassVar = (
        *GeneratorExperiment.MAY_CHANGE,
        "data.index_dir",
        "data.cache_dir",
        "data.cache_max_gb",
        "data.download_attempts",
        "data.download_timeout_s",
        "tokenizer.vae_pth",
    )

    system: Literal["gpt_c2i"] = Field("gpt_c2i", description="What is trained.")
    run: RunConfig
    data: GPTDataConfig
    tokenizer: FrozenTokenizerConfig = FrozenTokenizerConfig()
    network: GPTConfig
    optimizer: GPTAdamConfig = GPTAdamConfig()
    training: GPTTrainingConfig
    guard: GuardConfig = GuardConfig()
    sample: TokenSamplingConfig = TokenSamplingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
