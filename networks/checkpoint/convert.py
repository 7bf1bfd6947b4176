"""From a file of the reference to a folder of this project, and back."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.checkpoint_folder import find_checkpoint
from common.errors import CheckpointError
from networks.checkpoint.folder import (
    ModelFolder,
    Shape,
    encoder_facts,
    read_model_config,
    read_model_folder,
    write_model_folder,
)
from networks.checkpoint.loading import (
    encoder_weights,
    names_of,
    require_fit,
    require_same_encoder,
    tokenizer_class,
)
from networks.checkpoint.names import ENCODER, REFERENCE_FAMILIES
from networks.checkpoint.origin import Origin
from networks.checkpoint.reference import (
    ReferenceCheckpoint,
    read_reference,
    snapshot_name,
    snapshot_nimg,
    to_own_state,
    to_reference_state,
    write_reference,
)
from networks.config import TokenizerConfig
from networks.encoders.loading import load_encoder
from networks.encoders.recognition import model_config_of
from networks.fingerprint import weights_fingerprint
from networks.vfm_vae import has_noise_maps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        path: the folder or file.
        weights: entries of the tokenizer without its encoder, in each of EMA and raw weights.
        has_raw: whether there are raw weights beside the EMA.
        encoder: entries of the frozen encoder.
        discriminator: entries of the discriminators.
        has_noise: whether the weights are of the `legacy` kind.
        origin: where the weights come from, if not from training from scratch.
    """

    path: Path
    weights: int
    has_raw: bool
    encoder: int
    discriminator: int
    has_noise: bool
    origin: Origin | None


def reference_to_folder(
    source: str | Path,
    target: str | Path,
    config: Shape,
    licence: str | None = None,
    include_encoder: bool = False,
) -> Converted:
    """Write a `.pth` (VFMTok: `.pt`) of the reference as a model folder.

    The discriminators and `training_set_kwargs` are kept as they are, so that `folder_to_reference` gives them back.

    Args:
        target: folder to make.
        config: shape of the tokenizer, which the weights must fit.
        licence: of the weights; None: what the file records, else that it is unknown.
        include_encoder: copy the frozen encoder, so that the folder needs nothing else; otherwise only its fingerprint
            is kept.

    Raises: CheckpointError if the file cannot be read or does not fit, or the folder cannot be written.
    """
    checkpoint = read_reference(source)
    family = config.encoder.resolved_family()
    names, (raw_name, average_name) = names_of(config), checkpoint.entries
    average = to_own_state(checkpoint.average, f"{source}: {average_name}", family, names)
    raw = None
    if checkpoint.raw is not None:
        raw = to_own_state(checkpoint.raw, f"{source}: {raw_name}", family, names)
    _require_fit(config, average, f"{source}: {average_name}")
    if raw is not None:
        _require_fit(config, raw, f"{source}: {raw_name}")
        _require_one_encoder(average, raw, str(source))
        raw = _without_encoder(raw)
    encoder = encoder_weights(average)
    origin = _with_licence(checkpoint.origin, licence, Path(source).name)
    content = ModelFolder(
        config,
        average if include_encoder else _without_encoder(average),
        raw,
        snapshot_nimg(source),
        encoder_facts(config, weights_fingerprint(encoder) if encoder else None),
        checkpoint.discriminator,
        _json_part(checkpoint.training_set_kwargs, str(source)),
        origin,
        model_config_of(config.encoder.vfm_name, config.encoder.revision) if include_encoder else None,
    )
    write_model_folder(Path(target), content)
    return _summary(content, Path(target), len(encoder) if include_encoder else 0)


def folder_to_reference(
    source: str | Path,
    target: str | Path,
    licence: str | None = None,
    include_encoder: bool = True,
) -> Converted:
    """Write a checkpoint as a `.pth` that the reference loads: raw weights as G, their EMA as G_ema.

    Args:
        source: checkpoint folder or run folder.
        target: file `....pth`, or a folder that gets `network-snapshot-<kimg>.pth`.
        licence: of the weights; None: what the checkpoint records.
        include_encoder: write the frozen encoder's weights, as the reference does: the copy in the checkpoint, else
            from where its configuration points to.

    Raises: CheckpointError if the checkpoint is damaged, the reference has no such encoder or decoder, or the file
        cannot be written; UserError if the encoder cannot be loaded.
    """
    folder = find_checkpoint(source, log.warning)
    kind = read_model_config(folder).MODEL_TYPE
    if kind != TokenizerConfig.MODEL_TYPE:
        raise CheckpointError(f"{folder}: is a {kind}; only {TokenizerConfig.MODEL_TYPE} is written as a .pth.")
    content = read_model_folder(folder)
    family = content.config.encoder.resolved_family()
    if family not in REFERENCE_FAMILIES:
        raise CheckpointError(
            f"{folder}: its encoder is of the family {family!r}, which the reference does not have; it can load only "
            f"{', '.join(REFERENCE_FAMILIES)}."
        )
    _require_known_decoder(content.config, folder)
    path = _reference_path(Path(target), content.nimg, folder)
    if path.exists():
        raise CheckpointError(f"{path}: exists already; give a name that does not.")
    encoder = _encoder_to_write(content, folder) if include_encoder else {}
    average, raw = (
        None if state is None else to_reference_state(_without_encoder(state) | encoder, family)
        for state in (content.average, content.raw)
    )
    options = content.training_set_kwargs or _training_set_kwargs(content.config)
    content = dataclasses.replace(content, origin=_with_licence(content.origin, licence, folder.name))
    write_reference(path, ReferenceCheckpoint(average, raw, content.discriminator, options, content.origin))
    return _summary(content, path, len(encoder))


def _require_known_decoder(config: TokenizerConfig, folder: Path) -> None:
    """Refuse a decoder that the reference names in its options and cannot build or run."""
    decoder = config.decoder
    found = None
    if decoder.conditional:
        found = "decoder.conditional: true"
    elif decoder.use_convnext and not decoder.use_multiscale_output:
        found = "decoder.use_multiscale_output: false with decoder.use_convnext: true"
    if found:
        raise CheckpointError(f"{folder}: its decoder is of a kind that the reference cannot run ({found}).")


def _summary(content: ModelFolder, path: Path, encoder: int) -> Converted:
    return Converted(
        path,
        weights=len(_without_encoder(content.average)),
        has_raw=content.raw is not None,
        encoder=encoder,
        discriminator=len(content.discriminator),
        has_noise=has_noise_maps(content.average),
        origin=content.origin,
    )


def _without_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(ENCODER)}


def _with_licence(origin: Origin | None, licence: str | None, source: str) -> Origin | None:
    if licence is None:
        return origin
    return Origin(source if origin is None else origin.source, licence)


def _require_fit(config: Shape, state: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError if these weights are not those of this tokenizer; costs no memory."""
    with torch.device("meta"):
        model = tokenizer_class(config).for_weights(config, None, state, where)
    require_fit(model, state, where)


def _require_one_encoder(average: Mapping[str, Tensor], raw: Mapping[str, Tensor], where: str) -> None:
    of_average, of_raw = encoder_weights(average), encoder_weights(raw)
    for name in of_average.keys() | of_raw.keys():
        if name not in of_average or name not in of_raw or not torch.equal(of_average[name], of_raw[name]):
            raise CheckpointError(
                f"{where}: G and G_ema have different weights in the encoder, e.g. {name}; it was trained, and this "
                "project keeps one frozen encoder."
            )


def _encoder_to_write(content: ModelFolder, folder: Path) -> dict[str, Tensor]:
    """The frozen encoder's weights (own names): the checkpoint's copy, else those that it refers to."""
    encoder = encoder_weights(content.average)
    if not encoder:
        encoder = load_encoder(content.config.encoder).state_dict()
        if content.encoder["sha256"] is not None:
            require_same_encoder(weights_fingerprint(encoder), content.encoder["sha256"], str(folder))
    return {ENCODER + name: value for name, value in encoder.items()}


def _reference_path(target: Path, nimg: int | None, folder: Path) -> Path:
    if target.suffix == ".pth":
        return target
    if nimg is None:
        raise CheckpointError(
            f"{folder}: does not know how many images it has seen, after which the reference names its files; "
            f"give a file name, e.g. {target / snapshot_name(0)}."
        )
    return target / snapshot_name(nimg)


def _training_set_kwargs(config: TokenizerConfig) -> dict[str, Any]:
    """What is known of the training data of a tokenizer that does not come from the reference."""
    decoder = config.decoder
    return {"resolution": config.img_resolution, "conditional": decoder.conditional, "label_type": decoder.label_type}


def _json_part(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The entries that JSON holds; what it does not hold is named in the log."""
    kept = {}
    for name, value in options.items():
        try:
            kept[str(name)] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            log.warning("%s: training_set_kwargs.%s is left out: a %s.", where, name, type(value).__name__)
    return kept
