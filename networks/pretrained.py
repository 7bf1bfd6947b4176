"""Models on disk and on the hub: found, loaded with what is known about them, and written with a card."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.checkpoint_folder import find_checkpoint
from common.errors import CheckpointError
from common.files import write_text_atomically
from networks.checkpoint.folder import (
    ModelFolder,
    Shape,
    encoder_facts,
    read_manifest,
    read_model_config,
    write_model_folder,
)
from networks.checkpoint.loading import Tokenizer, load_folder
from networks.checkpoint.names import ENCODER
from networks.fingerprint import weights_fingerprint
from networks.hub import download_model, is_model_id
from networks.model_card import CardText, ModelFacts, model_card

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A tokenizer with what came with it."""

    tokenizer: Tokenizer
    config: Shape
    facts: ModelFacts


def load_model(
    name: str | Path,
    revision: str | None,
    subfolder: str | None,
    weights: Literal["ema", "raw"],
    vfm_name: str | None,
) -> LoadedModel:
    """A model by folder or hub id; see `UserModel.from_pretrained`."""
    folder = find_checkpoint(_folder_of(name, revision, subfolder), log.warning)
    config, facts = read_model_config(folder), ModelFacts.from_manifest(read_manifest(folder))
    if vfm_name is not None:
        config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"vfm_name": vfm_name})})
        facts = replace(facts, encoder={**facts.encoder, "vfm_name": vfm_name})
    return LoadedModel(load_folder(folder, config, weights), config, facts)


def _folder_of(name: str | Path, revision: str | None, subfolder: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path / (subfolder or "")
    if path.is_file():
        raise CheckpointError(
            f"{path}: is a file, expected a folder or a hub id; tools/convert_checkpoint.py makes a folder of a .pth."
        )
    if not is_model_id(name):
        raise CheckpointError(f"{path}: no such folder; expected one, or a hub id `organisation/name`.")
    return download_model(str(name), revision, subfolder)


def save_model(
    folder: Path, tokenizer: Tokenizer, config: Shape, facts: ModelFacts, text: CardText, include_encoder: bool
) -> None:
    """Write a model folder with its card; see `UserModel.save_pretrained`.

    The card is no part of what the manifest protects, for it is there to be edited.
    """
    encoder = tokenizer.encoder
    assert encoder is not None
    if facts.encoder["sha256"] is None:
        facts = replace(facts, encoder={**facts.encoder, "sha256": weights_fingerprint(encoder.state_dict())})
    identity = {"vfm_name": facts.encoder["vfm_name"], "family": facts.encoder["family"]}
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update=identity)})
    state = tokenizer.trainable_parts().state_dict()
    if include_encoder:
        state |= {ENCODER + name: value for name, value in encoder.state_dict().items()}
    content = ModelFolder(
        config,
        state,
        None,
        facts.nimg,
        facts.encoder,
        origin=facts.origin,
        encoder_config=encoder.model_config if include_encoder else None,
        text_tokenizer=encoder.text_tokenizer if include_encoder else None,
        further_facts=facts.further(),
    )
    write_model_folder(folder, content)
    write_text_atomically(folder / "README.md", model_card(text, facts, include_encoder))


def facts_of(tokenizer: Tokenizer) -> ModelFacts:
    """What is known of a tokenizer that was not loaded from a folder: its encoder."""
    assert tokenizer.encoder is not None
    sha256 = weights_fingerprint(tokenizer.encoder.state_dict())
    return ModelFacts(encoder=encoder_facts(tokenizer.config, sha256))
