"""Tokenizers from checkpoint folders of this project and from the reference's files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from common.checkpoint_folder import find_checkpoint
from common.config import Source, build
from common.errors import CheckpointError
from networks.checkpoint.reference import read_reference_weights
from networks.config import TOKENIZER_RELATIONS, TokenizerConfig
from networks.encoders.loading import encoder_fingerprint, load_encoder
from networks.vfm_vae import VFMVAETokenizer

log = logging.getLogger(__name__)


def load_tokenizer(
    path: str | Path,
    config: TokenizerConfig | None = None,
    device: str | torch.device = "cpu",
    weights: Literal["ema", "raw"] = "ema",
) -> VFMVAETokenizer:
    """A tokenizer in eval mode, with its frozen encoder.

    Args:
        path: a checkpoint folder or run folder of this project, or a `.pth` of the reference.
        config: its shape; may be left out where the checkpoint carries it (folders do).
        weights: the EMA of the weights, or the weights themselves.

    Raises: CheckpointError if the file is missing, damaged or does not fit; UserError if the encoder cannot be loaded.
    """
    encoder_sha256 = None
    if Path(path).is_dir():
        path = find_checkpoint(path, log.warning)
        config = config or read_model_config(path)
        encoder_sha256 = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["encoder"]["sha256"]
    state = read_weights(path, weights)
    if config is None:
        raise CheckpointError(f"{path}: a reference checkpoint carries no configuration; give one (--use-config).")
    model = build_tokenizer(config, state, str(path))
    if encoder_sha256 is not None:
        require_same_encoder(encoder_fingerprint(model.encoder), encoder_sha256, str(path))
    return model.to(device)


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


def read_weights(path: str | Path, weights: Literal["ema", "raw"] = "ema") -> dict[str, Tensor]:
    """Weights by own names from a checkpoint folder, a run folder or a reference `.pth`.

    Raises: CheckpointError if there is none, or it is damaged.
    """
    if Path(path).is_dir():
        folder = find_checkpoint(path, log.warning)
        return load_file(folder / ("model.safetensors" if weights == "ema" else "model_raw.safetensors"))
    return read_reference_weights(path, weights)


def build_tokenizer(config: TokenizerConfig, state: Mapping[str, Tensor], where: str) -> VFMVAETokenizer:
    """A tokenizer with these weights (own names; an encoder among them replaces the one on disk).

    Raises: CheckpointError that names missing, unexpected or misshapen weights.
    """
    has_noise = has_noise_maps(state)
    if config.decoder.legacy is not None and config.decoder.legacy != has_noise:
        raise CheckpointError(
            f"{where}: decoder.legacy is {str(config.decoder.legacy).lower()}, but the file "
            f"{'has' if has_noise else 'has no'} noise maps; set it to {str(has_noise).lower()} or null."
        )
    model = VFMVAETokenizer(config, load_encoder(config.encoder), noise=has_noise)
    load_weights(model, state, where)
    return model.eval()


def has_noise_maps(state: Mapping[str, Tensor]) -> bool:
    """Whether weights (own names) are of the `legacy` kind, with fixed noise maps in the decoder's layers."""
    return any(name.endswith(".noise_strength") for name in state)


def load_weights(model: VFMVAETokenizer, state: Mapping[str, Tensor], where: str) -> None:
    """Copy weights by own names into a tokenizer.

    The alignment head may be absent or left over, for only the VF loss uses it; everything else must fit exactly.

    Raises: CheckpointError that names missing, unexpected or misshapen weights.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    given = {name: value for name, value in state.items() if not name.startswith("encoder.")}
    missing = [name for name in own if name not in given and not name.startswith("alignment.")]
    unexpected = [name for name in given if name not in own and not name.startswith("alignment.")]
    shapes = [
        f"{name} is {list(given[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    problems = [
        f"{len(found)} {kind}, e.g. {found[0]}"
        for kind, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise CheckpointError(f"{where}: the weights do not fit the configuration: {'; '.join(problems)}.")
    model.load_state_dict({name: value for name, value in given.items() if name in own}, strict=False)
    encoder = {n.removeprefix("encoder."): value for n, value in state.items() if n.startswith("encoder.")}
    if encoder and model.encoder is not None:
        model.encoder.load_state_dict(encoder, strict=True)


def read_model_config(folder: Path) -> TokenizerConfig:
    """The tokenizer's configuration that a checkpoint folder carries. Raises ConfigError if it is not valid."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("model_type", None)
    return build(TokenizerConfig, Source(str(path), values), TOKENIZER_RELATIONS)
