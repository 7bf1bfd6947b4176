"""Model folders of this project: weights, their configuration, and what came with them.

    model.safetensors                       EMA of the weights; with the frozen encoder if that was asked for
    model_raw.safetensors                   the weights, if they are known beside their EMA
    config.json                             shape of the tokenizer
    reference_discriminator.safetensors     discriminators of a reference file, as they were, by its names
    training_set_kwargs.json                options of a reference file's training data, as they were
    encoder/                                if the encoder's weights are among the model's: its own config.json, and
                                            its text tokenizer where the decoder reads texts
    manifest.json                           hashes of all these; `encoder`: the frozen encoder; `derived_from`: origin

A checkpoint of a run holds the first three and what it needs to go on; its discriminators are in
`discriminators_raw.safetensors`, by own names and without their frozen backbone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.checkpoint_folder import write_checkpoint
from common.config import Source, build
from common.errors import CheckpointError, UserError
from common.registry import import_object
from networks import TOKENIZERS
from networks.checkpoint.names import ENCODER, discriminator_rows, to_reference_name
from networks.checkpoint.origin import Origin
from networks.config import TokenizerConfig
from networks.vfmtok.config import VFMTokConfig

Shape = TokenizerConfig | VFMTokConfig  # what decides the shape of a tokenizer, of any kind

WEIGHT_FILES = {"ema": "model.safetensors", "raw": "model_raw.safetensors"}
ENCODER_FOLDER = "encoder"
_DISCRIMINATOR = "reference_discriminator.safetensors"
_OWN_DISCRIMINATOR = "discriminators_raw.safetensors"
_TRAINING_SET = "training_set_kwargs.json"


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds, besides the state of a run. Weights have own names and stay on disk until used.

    Attributes:
        config: shape of the tokenizer.
        average: EMA of the weights.
        raw: the weights, if known.
        nimg: images seen, if known.
        encoder: name, family, revision and fingerprint (`sha256`; None if unknown) of the frozen encoder.
        discriminator: discriminators, by the reference's names.
        training_set_kwargs: options of a reference file's training data.
        origin: where the weights come from, if not from training from scratch.
        encoder_config: the encoder's own `config.json`, from which it can be built for the weights in `average`.
        text_tokenizer: of the encoder's text model, if the decoder reads texts.
        further_facts: entries of the manifest besides those that the others make.
    """

    config: Shape
    average: Mapping[str, Tensor]
    raw: Mapping[str, Tensor] | None
    nimg: int | None
    encoder: Mapping[str, Any]
    discriminator: Mapping[str, Tensor] = field(default_factory=dict)
    training_set_kwargs: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    encoder_config: Mapping[str, Any] | None = None
    text_tokenizer: Any | None = None
    further_facts: Mapping[str, Any] = field(default_factory=dict)


def read_model_folder(folder: Path) -> ModelFolder:
    """A checkpoint folder that `find_checkpoint` has accepted. Raises ConfigError if its configuration is not valid."""
    manifest = read_manifest(folder)
    return ModelFolder(
        read_model_config(folder),
        read_folder_weights(folder, "ema"),
        read_folder_weights(folder, "raw") if (folder / WEIGHT_FILES["raw"]).exists() else None,
        manifest["nimg"],
        manifest["encoder"],
        _read_discriminator(folder, manifest),
        _read_json(folder / _TRAINING_SET) if (folder / _TRAINING_SET).exists() else {},
        Origin.from_json(manifest.get("derived_from")),
    )


def write_model_folder(target: Path, content: ModelFolder) -> None:
    """Write a folder that `load_tokenizer` reads, whole or not at all.

    Raises: CheckpointError if something is there already, or the folder cannot be written.
    """
    if target.exists():
        raise CheckpointError(f"{target}: exists already; give a folder that does not.")

    def fill(folder: Path) -> None:
        save_tensors(content.average, folder / WEIGHT_FILES["ema"])
        if content.raw is not None:
            save_tensors(content.raw, folder / WEIGHT_FILES["raw"])
        if content.discriminator:
            save_tensors(content.discriminator, folder / _DISCRIMINATOR)
        if content.training_set_kwargs:
            _write_json(content.training_set_kwargs, folder / _TRAINING_SET)
        write_encoder_files(folder, content.encoder_config, content.text_tokenizer)
        _write_json(model_config_values(content.config), folder / "config.json")

    facts = {
        **content.further_facts,
        "nimg": content.nimg,
        "encoder": dict(content.encoder),
        "derived_from": None if content.origin is None else content.origin.to_json(),
    }
    try:
        write_checkpoint(target, fill, facts)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error}).") from error


def read_folder_weights(folder: Path, weights: Literal["ema", "raw"]) -> dict[str, Tensor]:
    """Weights of a checkpoint folder; its EMA where it holds nothing else.

    Raises: UserError if `weights` names neither.
    """
    if weights not in WEIGHT_FILES:
        raise UserError(f"weights: found {weights!r}, expected one of {', '.join(WEIGHT_FILES)}.")
    path = folder / WEIGHT_FILES[weights]
    return load_file(path if path.exists() else folder / WEIGHT_FILES["ema"])


def _read_discriminator(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    if (folder / _DISCRIMINATOR).exists():
        return load_file(folder / _DISCRIMINATOR)
    if not (folder / _OWN_DISCRIMINATOR).exists():
        return {}
    config = manifest["config"]["discriminator"]
    if config.get("projected_kind") == "vfmtok":
        return {}  # its heads read other inputs than the reference's of the same names
    rows = discriminator_rows(config["get_interm_feat"])
    return {to_reference_name(name, rows): value for name, value in load_file(folder / _OWN_DISCRIMINATOR).items()}


def read_encoder_copy(folder: Path) -> dict[str, Tensor]:
    """The frozen encoder's weights, by the names inside the encoder; empty if the folder has no copy of them."""
    with safe_open(folder / WEIGHT_FILES["ema"], "pt") as file:
        names = file.keys()
        return {name.removeprefix(ENCODER): file.get_tensor(name) for name in names if name.startswith(ENCODER)}


def read_model_config(folder: Path) -> Shape:
    """What the `config.json` of a checkpoint folder says of its tokenizer.

    Where the folder has the encoder's own configuration, `encoder.vfm_name` points to that.

    Raises: ConfigError if it is not valid, CheckpointError if it is of another kind of model.
    """
    path = folder / "config.json"
    values = _read_json(path)
    kind = values.pop("model_type", "vfm_vae")
    if kind not in TOKENIZERS:
        raise CheckpointError(f"{folder}: found a checkpoint of {kind}, expected one of a tokenizer.")
    if (folder / ENCODER_FOLDER / "config.json").is_file():
        values["encoder"]["vfm_name"] = str(folder / ENCODER_FOLDER)
    entry = TOKENIZERS[kind]
    return build(import_object(entry.config), Source(str(path), values), import_object(entry.relations))


def write_encoder_files(folder: Path, encoder_config: Mapping[str, Any] | None, text_tokenizer: Any | None) -> None:
    """Put what it takes to build the encoder into a checkpoint folder that has its weights; nothing, if that is none.

    Args:
        encoder_config: its own `config.json`; None for a family of a single model.
        text_tokenizer: of its text model, if it has one.
    """
    if encoder_config is not None:
        (folder / ENCODER_FOLDER).mkdir()
        _write_json(encoder_config, folder / ENCODER_FOLDER / "config.json")
    if text_tokenizer is not None:
        text_tokenizer.save_pretrained(folder / ENCODER_FOLDER)


def model_config_values(config: Shape) -> dict[str, Any]:
    """What `config.json` says of a tokenizer; the inverse of `read_model_config`."""
    return {"model_type": config.MODEL_TYPE, **config.model_dump(mode="json")}


def encoder_facts(config: Shape, sha256: str | None) -> dict[str, Any]:
    """What a manifest says of the frozen encoder, to which a checkpoint refers.

    Args:
        sha256: its fingerprint, if known.
    """
    encoder = config.encoder
    return {
        "vfm_name": encoder.vfm_name,
        "family": encoder.resolved_family(),
        "revision": encoder.revision,
        "sha256": sha256,
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder."""
    return _read_json(folder / "manifest.json")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors. Raises OSError if the disk is full or the file cannot be written."""
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    except SafetensorError as error:  # what this library makes of a full disk
        raise OSError(f"{path}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
