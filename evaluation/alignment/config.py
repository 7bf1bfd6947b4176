"""Configuration of an alignment analysis. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common.config import Relation, StrictModel, build, load_source
from common.errors import UserError
from common.registry import closest
from evaluation.alignment.conditions import GROUPS, expand
from evaluation.alignment.metrics import DEFAULT_EPS, DEFAULT_K, METRICS
from networks.diffusion.config import LightningDiTConfig, REGSiTConfig


class ModelSection(StrictModel):
    """A model whose features are compared; `kind` is its name in `evaluation.alignment.models`."""

    kind: ClassVar[str]


class VFMSection(ModelSection):
    """A vision foundation model, of any encoder family of the project."""

    kind: ClassVar[str] = "vfm"

    vfm_name: str = Field(description="Folder or hub id of the model, or its name in timm.")
    layers: list[int] | Literal["all"] = Field(
        [-1], min_length=1, description="0 embeddings, k block k, -1 the last, normalised; all: every block."
    )
    pool: Literal["mean", "summary"] = Field(
        "mean", description="Mean over the patch tokens of each layer, or the model's own summary (class token, ...)."
    )
    scale_factor: PositiveFloat = Field(1.0, description="Images are resized by this before the model.")
    family: str | None = Field(None, description="Encoder family; null: told from the model's config or name.")
    revision: str | None = Field(None, description="Hub revision (commit, tag); null: the newest.")


class TokenizerSection(ModelSection):
    """A tokenizer of this project."""

    kind: ClassVar[str] = "tokenizer"

    vae_pth: str = Field(description="Checkpoint folder, run folder or reference .pth.")
    use_config: str | None = Field(None, description="YAML of the model; null: the one that the checkpoint carries.")
    weights: Literal["ema", "raw"] = Field("ema", description="Which weights.")
    latent: Literal["mode", "sample"] = Field("mode", description="Mean or sample of the posterior.")
    seed: NonNegativeInt = Field(0, description="Key of the posterior noise, with each image's name.")


class AutoencoderSection(ModelSection):
    """A KL autoencoder in the layout of the diffusers library, such as SD-VAE."""

    kind: ClassVar[str] = "autoencoder"

    path: str = Field(description="Model folder with config.json and weights.")
    latent: Literal["mode", "sample"] = Field("mode", description="Mean or sample of the posterior.")
    seed: NonNegativeInt = Field(0, description="Key of the posterior noise, with each image's name.")
    apply_scaling: bool = Field(False, description="Multiply latents by the model's scaling_factor.")


class DiffusionSection(ModelSection):
    """LightningDiT or REG, at chosen shares of noise; it sees latents of the clean images."""

    kind: ClassVar[str] = "diffusion"

    checkpoint: str = Field(description="Checkpoint folder, run folder or file of the reference.")
    latents: str = Field(
        description="Folder that tools/evaluate_alignment/prefetch.py wrote, with latents_stats.pt of the training."
    )
    lightningdit: LightningDiTConfig | None = Field(
        None, description="Shape of the network in a file of LightningDiT; a folder carries its own."
    )
    reg: REGSiTConfig | None = Field(None, description="The same for a file of REG.")
    weights: Literal["ema", "raw"] = Field("ema", description="Which weights.")
    parts: list[str] | Literal["all"] = Field(
        "all", min_length=1, description="embedder, block_0, ..., projector_0, ... (REG), final_layer; or all."
    )
    timesteps: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [0.5], min_length=1, description="Shares of noise: 0 is the clean latent, 1 noise alone."
    )
    use_label: bool = Field(False, description="Tell the network the class of each image; false: the null class.")
    latent_multiplier: PositiveFloat = Field(1.0, description="Applied after the normalisation, as in the training.")
    seed: NonNegativeInt = Field(0, description="Key of the noise, with each image's name.")


SECTION_CLASSES: dict[str, type[ModelSection]] = {
    section.kind: section for section in (VFMSection, TokenizerSection, AutoencoderSection, DiffusionSection)
}


class AlignmentConfig(StrictModel):
    """Which models are compared with which, under which conditions."""

    images: str = Field(description="Root folder that tools/evaluate_alignment/preprocess.py filled.")
    output_dir: str = Field(description="Gets features/, report.html, report.json, scores.csv.")
    vfms: dict[str, VFMSection] = Field({}, description="Vision foundation models by a name of your choice.")
    tokenizers: dict[str, TokenizerSection] = Field({}, description="Tokenizers of this project, by name.")
    autoencoders: dict[str, AutoencoderSection] = Field({}, description="diffusers autoencoders, by name.")
    diffusion_models: dict[str, DiffusionSection] = Field({}, description="LightningDiT and REG models, by name.")
    rows: list[str] = Field(min_length=1, description="Models that are assessed: first argument of the metric.")
    columns: list[str] = Field(min_length=1, description="Models that they are compared with: second argument.")
    conditions: list[str] = Field(
        ["published"],
        description="Transformations to average over: names, `published` (equivariance and four noise levels), `grid`; "
        "[] with include_clean: true: the clean images alone.",
    )
    include_clean: bool = Field(False, description="The clean condition takes part in the mean.")
    reference: Literal["same", "clean"] = Field(
        "same", description="Columns see the images of the same condition, or always the clean ones."
    )
    weights: dict[str, NonNegativeFloat] = Field({}, description="Weight of a condition in the mean; 1 if not given.")
    metric: str = Field("cknna", description="A name of evaluation.alignment.metrics.")
    topk: PositiveInt = Field(DEFAULT_K, description="Number of neighbours.")
    eps: NonNegativeFloat = Field(DEFAULT_EPS, description="Added to the denominator of CKNNA and CKA.")
    halves: NonNegativeInt = Field(20, description="Random halves of the images for standard errors; 0: none.")
    min_overlap: float = Field(0.95, ge=0, le=1, description="Least share of images that all feature files must have.")
    resolution: PositiveInt = Field(256, description="Side of the images, in pixels, before transformations.")
    batch_size_per_gpu: PositiveInt = Field(32, description="Images per batch on each rank.")
    num_workers: PositiveInt = Field(4, description="Threads that read images.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models run.")

    @property
    def models(self) -> dict[str, ModelSection]:
        """All models by name."""
        return {**self.vfms, **self.tokenizers, **self.autoencoders, **self.diffusion_models}

    @property
    def used_models(self) -> list[str]:
        """Names of the models that take part, rows first, each once."""
        return list(dict.fromkeys([*self.rows, *self.columns]))

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Names of the transformed conditions."""
        return tuple(condition.name for condition in expand(self.conditions))


def load_alignment_config(path: str | Path, overrides: list[str]) -> AlignmentConfig:
    """Read a YAML file with overrides (`key=value`). Raises: ConfigError that lists every problem."""
    return build(AlignmentConfig, load_source(path, overrides), RELATIONS)


def _known(key: str) -> Relation:
    def check(c: AlignmentConfig) -> str | None:
        for name in getattr(c, key):
            if name not in c.models:
                near = f" Closest: {closest(name, c.models)}." if c.models else ""
                return f"found {name!r}, which is none of the models in {', '.join(SECTIONS)}.{near}"
        return None

    return Relation((key, *SECTIONS), check)


SECTIONS = ("vfms", "tokenizers", "autoencoders", "diffusion_models")


def _names(c: AlignmentConfig) -> str | None:
    names = [name for section in SECTIONS for name in getattr(c, section)]
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name):
            return f"found the model name {name!r}, expected letters, digits, `_`, `-`, `.`; it names files."
        if names.count(name) > 1:
            return f"found the model name {name!r} twice, expected each name in one section only."
    return None


def _conditions(c: AlignmentConfig) -> str | None:
    try:
        names = c.condition_names
    except UserError as error:
        return f"{error} `{'` and `'.join(GROUPS)}` stand for several."
    if not names and not c.include_clean:
        return "found none; name transformations, or score the clean images alone with include_clean: true."
    return "found clean; it is always scored, and include_clean takes it into the mean." if "clean" in names else None


def _diffusion_sees_clean_images(c: AlignmentConfig) -> str | None:
    if not c.conditions:
        return None
    for name in c.rows if c.reference == "clean" else c.used_models:
        if name in c.diffusion_models:
            return (
                f"found {c.conditions}, but {name} has features of clean images only; set conditions: [] and "
                "include_clean: true, or take it as a column with reference: clean."
            )
    return None


def _weights(c: AlignmentConfig) -> str | None:
    if _conditions(c):
        return None
    averaged = [*(["clean"] if c.include_clean else []), *c.condition_names]
    for name in c.weights:
        if name not in averaged:
            return f"found a weight of {name!r}, which takes no part; expected {', '.join(averaged)}."
    return "all are 0, expected one above." if not any(c.weights.get(name, 1) for name in averaged) else None


def _metric(c: AlignmentConfig) -> str | None:
    if c.metric in METRICS:
        return None
    return f"found {c.metric!r}, expected one of {', '.join(METRICS)}. Closest: {closest(c.metric, METRICS)}."


RELATIONS = (
    _known("rows"),
    _known("columns"),
    Relation(SECTIONS, _names),
    Relation(("conditions", "include_clean"), _conditions),
    Relation(("conditions", "rows", "columns", "reference"), _diffusion_sees_clean_images),
    Relation(("weights", "conditions", "include_clean"), _weights),
    Relation(("metric",), _metric),
)
