"""Tokenizers from checkpoint folders of this project and from the reference's files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from common.checkpoint_folder import find_checkpoint
from common.errors import CheckpointError
from common.registry import import_object
from networks import TOKENIZERS
from networks.checkpoint.fit import misfits
from networks.checkpoint.folder import (
    Shape,
    read_encoder_copy,
    read_folder_weights,
    read_manifest,
    read_model_config,
)
from networks.checkpoint.names import ENCODER, TOKENIZER, Rows
from networks.checkpoint.origin import Origin
from networks.checkpoint.reference import read_reference, read_reference_weights, require_file
from networks.encoders.base import VisionEncoder
from networks.encoders.loading import empty_encoder, load_encoder
from networks.encoders.text import load_text_tokenizer
from networks.fingerprint import weights_fingerprint
from networks.vfm_vae import VFMVAETokenizer
from networks.vfmtok.tokenizer import VFMTokTokenizer

Tokenizer = VFMVAETokenizer | VFMTokTokenizer

log = logging.getLogger(__name__)


def load_tokenizer(
    path: str | Path,
    config: Shape | None = None,
    device: str | torch.device = "cpu",
    weights: Literal["ema", "raw"] = "ema",
) -> Tokenizer:
    """A tokenizer in eval mode, with its frozen encoder.

    Args:
        path: a checkpoint folder or run folder of this project, or a `.pth` (`.pt`) of the reference.
        config: its shape; may be left out where the checkpoint carries it (folders do).
        weights: the EMA of the weights, or the weights themselves.

    Raises: CheckpointError if the file is missing, damaged or does not fit; UserError if the encoder cannot be loaded.
    """
    if Path(path).is_dir():
        folder = find_checkpoint(path, log.warning)
        return load_folder(folder, config or read_model_config(folder), weights).to(device)
    if config is None:
        require_file(path)
        raise CheckpointError(f"{path}: a reference checkpoint carries no configuration; give one (--use-config).")
    state = read_reference_weights(path, weights, config.encoder.resolved_family(), names_of(config))
    return build_tokenizer(config, state, str(path)).to(device)


def load_folder(folder: Path, config: Shape, weights: Literal["ema", "raw"] = "ema") -> Tokenizer:
    """A tokenizer from a checkpoint folder that `find_checkpoint` has accepted; see `load_tokenizer`.

    The frozen encoder comes from the folder where that holds a copy of it, else from its own files.
    """
    state = read_folder_weights(folder, weights)
    with torch.random.fork_rng(devices=[]):  # the random weights that networks start with are replaced at once
        encoder = built_encoder(config, read_encoder_copy(folder), str(folder))
        model = build_tokenizer(config, state, str(folder), encoder)
    recorded = read_manifest(folder)["encoder"]["sha256"]
    if recorded is not None:
        require_same_encoder(weights_fingerprint(model.encoder.state_dict()), recorded, str(folder))
    return model


def names_of(config: Shape) -> Rows:
    """The table own <-> reference names of a tokenizer's weights."""
    return import_object(TOKENIZERS[config.MODEL_TYPE].names)


def tokenizer_class(config: Shape) -> type[Tokenizer]:
    """The network whose shape this is."""
    return import_object(TOKENIZERS[config.MODEL_TYPE].network)


def built_encoder(config: Shape, weights: Mapping[str, Tensor], where: str) -> VisionEncoder | None:
    """The frozen encoder made of a copy of its weights (names inside the encoder).

    Returns: None if there is no copy, or nothing tells how to build it but its own files.
    Raises: CheckpointError if the copy does not fit.
    """
    with_text = config.reads_texts
    encoder = empty_encoder(config.encoder, with_text) if weights else None
    if encoder is not None:
        if with_text:
            encoder.text_encoder.tokenizer = load_text_tokenizer(config.encoder.vfm_name, config.encoder.revision)
        if problems := misfits(encoder.state_dict(), weights):
            raise CheckpointError(f"{where}: its copy of the frozen encoder does not fit: {problems}.")
        encoder.load_state_dict(weights)
    return encoder


def require_same_encoder(found: str, recorded: str, where: str) -> None:
    """Refuse an encoder with other weights than the one that a checkpoint was trained on.

    Args:
        found: fingerprint of the encoder at hand.
        recorded: fingerprint that the checkpoint carries.

    Raises: CheckpointError if they differ.
    """
    if found != recorded:
        raise CheckpointError(
            f"{where}: was trained on an encoder with the fingerprint {recorded[:12]}..., but the one that "
            f"encoder.vfm_name gives now has {found[:12]}...; point vfm_name to the same weights."
        )


def read_weights(
    path: str | Path, weights: Literal["ema", "raw"] = "ema", names: Rows = TOKENIZER
) -> dict[str, Tensor]:
    """Weights by own names from a checkpoint folder, a run folder or a reference `.pth`.

    Args:
        names: table own <-> reference names.

    Raises: CheckpointError if there is none, or it is damaged.
    """
    if Path(path).is_dir():
        return read_folder_weights(find_checkpoint(path, log.warning), weights)
    return read_reference_weights(path, weights, names=names)


def origin_of(path: str | Path) -> Origin | None:
    """Where the weights of a checkpoint come from, if they were not trained from scratch with this project.

    Args:
        path: as for `load_tokenizer`.

    Raises: CheckpointError if there is nothing, or it is damaged.
    """
    if Path(path).is_dir():
        return Origin.from_json(read_manifest(find_checkpoint(path, log.warning)).get("derived_from"))
    return read_reference(path).origin


def build_tokenizer(
    config: Shape, state: Mapping[str, Tensor], where: str, encoder: VisionEncoder | None = None
) -> Tokenizer:
    """A tokenizer with these weights (own names).

    Args:
        encoder: the frozen encoder; None: the one on disk, whose weights give way to a copy in `state`.

    Raises: CheckpointError that names missing, unexpected or misshapen weights.
    """
    own = encoder or load_encoder(config.encoder, config.reads_texts)
    model = tokenizer_class(config).for_weights(config, own, state, where)
    load_weights(model, state, where)
    if encoder is None:
        load_encoder_weights(model, state, where)
    return model.eval()


def load_weights(model: Tokenizer, state: Mapping[str, Tensor], where: str) -> None:
    """Copy weights by own names into a tokenizer; weights of the frozen encoder among them are left alone.

    Raises: CheckpointError that names missing, unexpected or misshapen weights.
    """
    require_fit(model, state, where)
    own = {name for name in model.state_dict() if not name.startswith(ENCODER)}
    model.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)


def load_encoder_weights(model: Tokenizer, state: Mapping[str, Tensor], where: str) -> None:
    """Let the frozen encoder's weights in a checkpoint, if it has them, take the place of those from its own files.

    They are what the checkpoint was trained on; a difference is said in the log.

    Raises: CheckpointError if they are not those of this encoder.
    """
    given = encoder_weights(state)
    if not given or model.encoder is None:
        return
    own = model.encoder.state_dict()
    if problems := misfits(own, given):
        raise CheckpointError(
            f"{where}: the frozen encoder in it is another one than encoder.vfm_name gives: {problems}; point vfm_name "
            "to the same model."
        )
    differing = sum(not torch.equal(value, given[name].to(value)) for name, value in own.items())
    if differing:
        log.warning(
            "%s: %d of %d weights of the frozen encoder in it differ from those that encoder.vfm_name gives; those of "
            "the checkpoint are used.",
            where,
            differing,
            len(own),
        )
        model.encoder.load_state_dict(given)


def encoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frozen encoder's part of a state dict (own names), by the names inside the encoder."""
    return {name.removeprefix(ENCODER): value for name, value in state.items() if name.startswith(ENCODER)}


def require_fit(model: Tokenizer, state: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights (own names) that do not fit a tokenizer, which may be on the meta device.

    The network's `optional_weights` may be absent or left over; the frozen encoder is not looked at; everything else
    must fit exactly.

    Raises: CheckpointError that names missing, unexpected or misshapen weights.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(ENCODER)}
    given = {name: value for name, value in state.items() if not name.startswith(ENCODER)}
    if problems := misfits(own, given, optional=model.optional_weights):
        raise CheckpointError(f"{where}: the weights do not fit the configuration: {problems}.")
