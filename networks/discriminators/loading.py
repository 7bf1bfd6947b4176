"""Discriminators by their configuration, and their weights.

A checkpoint of this project refers to the frozen backbone; a file of the reference holds a copy of it among the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.checkpoint_folder import find_checkpoint
from common.errors import CheckpointError, UserError
from common.torch_file import read_torch_file
from networks.checkpoint.fit import misfits
from networks.checkpoint.folder import read_model_folder
from networks.checkpoint.names import PROJECTED, Rows, discriminator_rows, to_own_name, to_reference_name
from networks.checkpoint.reference import read_reference
from networks.config import DiscriminatorConfig
from networks.discriminators.backbone import DINO_MODEL, TappedViT, empty_backbone
from networks.discriminators.discriminators import Discriminators
from networks.discriminators.projected import PROJECTED_KINDS

log = logging.getLogger(__name__)

DISCRIMINATOR_FILE = "discriminators_raw.safetensors"  # of a run's checkpoint; own names, without the backbone
DINO_FILE = "dino_deitsmall16_pretrain.pth"
_BACKBONE, _PATCHGAN = "projected.backbone.", "patchgan."
_FILTER_GAIN = 2.0
VFM_VAE_ROWS: Rows = (*discriminator_rows(keep_features=True), *discriminator_rows(keep_features=False))


# --- building --------------------------------------------------------------------------------------------------


def build_discriminators(
    config: DiscriminatorConfig,
    interpolation: str,
    label_dim: int = 0,
    backbone: TappedViT | None = None,
    resolution: int | None = None,
) -> Discriminators:
    """The discriminators of a configuration: the frozen backbone with its weights, the rest as initialised.

    Args:
        interpolation, label_dim, resolution: see `Discriminators`.
        backbone: the frozen backbone; None: the one that the configuration names.

    Raises: UserError if the backbone's weights are missing; CheckpointError if they are others.
    """
    if config.use_stylegan_t_discriminator and backbone is None:
        backbone = load_backbone(config)
    return Discriminators(config, interpolation, backbone, label_dim, resolution)


def empty_discriminators(
    config: DiscriminatorConfig, interpolation: str, label_dim: int = 0, resolution: int | None = None
) -> Discriminators:
    """The same without the backbone's weights, on the current device (meta, to count); needs no file."""
    backbone = bare_backbone(config) if config.use_stylegan_t_discriminator else None
    return Discriminators(config, interpolation, backbone, label_dim, resolution)


def bare_backbone(config: DiscriminatorConfig) -> TappedViT:
    """The backbone that a configuration names, without its weights, on the current device."""
    return empty_backbone(config.backbone, PROJECTED_KINDS[config.projected_kind].gelu)


def load_backbone(config: DiscriminatorConfig) -> TappedViT:
    """The backbone that a configuration names, with its weights.

    Raises: UserError if DINO's file is missing; CheckpointError if it is not DINO ViT-S/16.
    """
    if config.backbone == "random_tiny":
        backbone = bare_backbone(config)
        _randomize(backbone.vit)
        log.warning(
            "discriminator.backbone is random_tiny: the projected discriminator judges by %d random features instead "
            "of DINO's. Fine for tests and demonstrations; results with it say nothing about quality.",
            backbone.channels,
        )
        return backbone
    path = find_dino(config.dino_path)
    return _with_weights(config, read_dino(path), str(path))


def _randomize(vit: nn.Module) -> None:
    """Weights of unit gain, the same in every run: with timm's small ones all depths would repeat the embedding.

    The patch filters have mean 0 and are as much larger as makes them answer to photographs with about unit variance.
    Most of what sets a patch of a photograph apart from another is its mean colour; filters that let it through would
    hardly tell a picture from a blurred one.
    """
    generator = torch.Generator().manual_seed(0)
    for name, value in vit.named_parameters():
        if value.ndim > 1:
            nn.init.normal_(value, std=value[0].numel() ** -0.5, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(value)
    with torch.no_grad():
        filters = vit.patch_embed.proj.weight  # [C, 3, side, side]
        filters.sub_(filters.mean(dim=(2, 3), keepdim=True)).mul_(_FILTER_GAIN)


def find_dino(dino_path: str | None) -> Path:
    """DINO's file: the given one, else one in torch's or the Hugging Face hub's cache.

    Raises: UserError that names model, file and key if there is none; it is never downloaded.
    """
    if dino_path is not None:
        path = Path(dino_path).expanduser()
        if path.is_file():
            return path
        found = f"{path} does not exist"
    else:
        path = Path(torch.hub.get_dir()) / "checkpoints" / DINO_FILE
        if path.is_file():
            return path
        cached = try_to_load_from_cache(f"timm/{DINO_MODEL}", "model.safetensors")
        if isinstance(cached, str):
            return Path(cached)
        found = f"neither {path} nor timm/{DINO_MODEL} in the hub's cache exists"
    raise UserError(
        f"discriminator.dino_path: the projected discriminator needs DINO ViT-S/16 (timm's {DINO_MODEL}), and {found}. "
        f"Set the key to a local {DINO_FILE}, to timm's model.safetensors, or to a reference checkpoint, which "
        "contains it; it is never downloaded."
    )


def read_dino(path: Path) -> dict[str, Tensor]:
    """DINO's weights by timm's names, from its own file or from the discriminator of a reference checkpoint.

    Raises: CheckpointError if the file is damaged, would execute code, or holds no tensors by name.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error}).") from error
    content = read_torch_file(path)
    state = content.get("D", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: found no dictionary of tensors, expected DINO's weights by name.")
    prefix = to_reference_name(f"{_BACKBONE}vit", PROJECTED) + "."
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inside or dict(state)


def _with_weights(config: DiscriminatorConfig, state: Mapping[str, Tensor], where: str) -> TappedViT:
    """DINO ViT-S/16 with these weights. Raises CheckpointError if they are not those of its architecture."""
    with torch.device("meta"):
        backbone = bare_backbone(config)
    if problems := misfits(backbone.vit.state_dict(), state):
        raise CheckpointError(f"{where}: not the weights of DINO ViT-S/16 (timm's {DINO_MODEL}): {problems}.")
    backbone.vit.load_state_dict({name: value.float().clone() for name, value in state.items()}, assign=True)
    return backbone


# --- weights ---------------------------------------------------------------------------------------------------


def to_own_state(state: Mapping[str, Tensor], where: str, rows: Rows = VFM_VAE_ROWS) -> dict[str, Tensor]:
    """Discriminators of a reference checkpoint under own names.

    Args:
        rows: the table. VFM-VAE's understands both layouts of its PatchGAN; VFMTok's is `VFMTOK_DISCRIMINATOR`.

    Raises: CheckpointError that names an entry which no table knows.
    """
    try:
        return {to_own_name(name, rows): value for name, value in state.items()}
    except KeyError as error:
        raise CheckpointError(f"{where}: weight {error} is not one of the reference's discriminators.") from error


def read_discriminator_weights(path: str | Path, rows: Rows = VFM_VAE_ROWS) -> dict[str, Tensor]:
    """Weights by own names from a checkpoint folder, a run folder or a reference `.pth`; empty if it has none.

    Args:
        rows: see `to_own_state`.

    Raises: CheckpointError if there is nothing, or it is damaged.
    """
    if not Path(path).is_dir():
        return to_own_state(read_reference(path).discriminator, str(path), rows)
    folder = find_checkpoint(path, log.warning)
    if (folder / DISCRIMINATOR_FILE).exists():
        return load_file(folder / DISCRIMINATOR_FILE)
    return to_own_state(read_model_folder(folder).discriminator, str(folder), rows)


def load_discriminator_weights(model: Discriminators, state: Mapping[str, Tensor], where: str) -> None:
    """Copy weights by own names into discriminators.

    A file from a stage without PatchGAN lacks all of it: the PatchGAN then stays as it is, and the log says so. A copy
    of the frozen backbone may be in the file, and must be equal to the one here. Everything else must fit exactly.

    Raises: CheckpointError that names missing, unexpected or misshapen weights, or tells of another backbone.
    """
    own = model.state_dict()
    absent = tuple(part for part in (_BACKBONE, _PATCHGAN) if not any(name.startswith(part) for name in state))
    wanted = {name: value for name, value in own.items() if not name.startswith(absent)}
    if problems := misfits(wanted, state):
        raise CheckpointError(f"{where}: the weights do not fit the discriminators of the configuration: {problems}.")
    for name, value in state.items():
        if name.startswith(_BACKBONE) and not torch.equal(own[name], value.to(own[name])):
            raise CheckpointError(
                f"{where}: its discriminators were trained on another frozen backbone than the one here ({name} "
                "differs); it holds a copy of its own: point discriminator.dino_path to it."
            )
    model.load_state_dict(state, strict=False)
    if model.patchgan is not None and _PATCHGAN in absent:
        log.warning("%s: holds no PatchGAN; the one here starts from its initial weights.", where)
