"""What a name tells of an encoder before it is loaded: its family, its patch size, its own config. Imports no torch.

A name (`encoder.vfm_name`) is a model folder, a hub id, a model of timm's own list, or a form that timm knows:
`hf-hub:ORGANISATION/NAME`, `local-dir:FOLDER`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.registry import closest
from networks.encoders import FAMILIES

LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"


@dataclass(frozen=True)
class PatchSizes:
    """Sides in pixels of the patch behind one token: of the last layer, and of all others."""

    patch: int
    last: int


def local_folder(vfm_name: str) -> Path | None:
    """The folder that a name stands for, whether it exists or not; None for a hub id or a model of timm's list.

    A hub id has at most one slash and starts with neither a dot, a slash nor a tilde.
    """
    if vfm_name.startswith(LOCAL_DIR):
        return Path(vfm_name.removeprefix(LOCAL_DIR)).expanduser()
    folder = Path(vfm_name).expanduser()
    is_path = vfm_name.startswith((".", "/", "~")) or (vfm_name.count("/") > 1 and ":" not in vfm_name)
    return folder if is_path or folder.is_dir() else None


def hub_id(vfm_name: str) -> str | None:
    """The id on the hub, ORGANISATION/NAME, that a name stands for, or None."""
    name = vfm_name.removeprefix(HF_HUB)
    is_id = re.fullmatch(r"[\w.-]+/[\w.@-]+", name) and local_folder(vfm_name) is None
    return name if is_id else None


def model_source(vfm_name: str) -> str:
    """What the transformers library loads a model from: a folder, or an id on the hub.

    Raises: UserError if the folder does not exist.
    """
    folder = local_folder(vfm_name)
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"encoder.vfm_name: the folder {str(folder)!r} does not exist; give a model folder or a hub id."
        )
    return str(folder or hub_id(vfm_name) or vfm_name)


def model_config_of(vfm_name: str, revision: str | None = None) -> dict[str, Any] | None:
    """The model's own `config.json`, from its folder or the hub's local cache; None if it is not at hand.

    Nothing is downloaded.
    """
    folder, repository = local_folder(vfm_name), hub_id(vfm_name)
    path: Any = None
    if folder is not None:
        path = folder / "config.json"
    elif repository is not None:
        from huggingface_hub import try_to_load_from_cache

        repository, _, named_revision = repository.partition("@")
        path = try_to_load_from_cache(repository, "config.json", revision=revision or named_revision or None)
    if not isinstance(path, str | Path):
        return None
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def resolve_family(vfm_name: str, family: str | None = None, revision: str | None = None) -> str:
    """The family of an encoder: the explicit key, else the model's own `config.json`, else its name.

    Only the last component of a name counts, in any case: a folder called `.../mae/dinov2-large` holds a DINOv2.

    Raises: UserError if none of the three tells, or if the name has to and is that of a folder that does not exist.
    """
    if family is not None:
        FAMILIES[family]
        return family
    values = model_config_of(vfm_name, revision) or {}
    model_type, architecture = values.get("model_type"), values.get("architecture")
    last = last_component(vfm_name).lower()
    for name, entry in FAMILIES.items():
        if model_type is not None:
            found = model_type in entry.model_types
        elif architecture is not None:
            found = entry.architectures and re.search(entry.architectures, architecture)
        else:
            found = entry.name_hint and re.search(entry.name_hint, last)
        if found:
            return name
    source = model_source(vfm_name)
    if model_type is not None:
        clue = f"model_type {model_type!r}"
    else:
        clue = "name, and it has no readable config.json" if Path(source).is_dir() and not values else "name"
    raise UserError(
        f"the family of the encoder {vfm_name!r} cannot be told from its {clue}"
        + f"; set encoder.family to one of {', '.join(FAMILIES)}. Closest to its name: {closest(last, FAMILIES)}."
    )


def resolve_patch_sizes(vfm_name: str, family: str, revision: str | None = None) -> PatchSizes:
    """Patch sizes of an encoder: the model's own config, else `patchN` in its name, else the family's."""
    entry, values = FAMILIES[family], model_config_of(vfm_name, revision)
    name = last_component(vfm_name) if values is None else values.get("architecture", "")
    stated = _tower_values(values or {})
    named = re.search(r"patch(\d+)", name.lower())
    own = stated.get("patch_size")
    patch = own if isinstance(own, int) else int(named[1]) if named else entry.patch_size
    return PatchSizes(patch, patch * stated.get("spatial_merge_size", entry.last_layer_merge))


def last_component(vfm_name: str) -> str:
    """The part of a name behind the last slash or the form's colon."""
    return re.split(r"[/\\:]", vfm_name.rstrip("/\\"))[-1]


def _tower_values(values: dict[str, Any]) -> dict[str, Any]:
    """The part of a `config.json` that describes the vision tower."""
    return values.get("vision_config") or values.get("model_args") or values
