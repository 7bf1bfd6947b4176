"""Families of frozen vision foundation models (VFMs).

Adding one: write `networks/encoders/<family>.py` with a `VisionEncoder`, and add a line to `FAMILIES`.
What must be known of a family without loading it (and without importing torch) stands in that line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import UserError
from common.registry import Registry, closest


@dataclass(frozen=True)
class EncoderFamily:
    """Facts about a family of encoders.

    Args:
        target: where its `VisionEncoder` is, as `module:Class`.
        interpolation: how the losses resize target images for this family.
        patch_size: side in pixels of the patch behind one token, unless the name says `patchN`.
        model_types: `model_type` values of a model's own `config.json` that belong to this family.
        name_hints: words in the last component of a name that belong to this family.
    """

    target: str
    interpolation: Literal["bilinear", "bicubic"]
    patch_size: int
    model_types: tuple[str, ...] = ()
    name_hints: tuple[str, ...] = ()


FAMILIES: Registry = Registry(
    "encoder family",
    {
        "siglip2": EncoderFamily(
            "networks.encoders.siglip2:SigLIP2Encoder",
            "bilinear",
            16,
            ("siglip_vision_model", "siglip"),
            ("siglip2",),
        ),
        "dinov2": EncoderFamily(
            "networks.encoders.dinov2:DINOv2Encoder",
            "bicubic",
            14,
            ("dinov2", "dinov2_with_registers"),
            ("dinov2",),
        ),
        "efficientnet_lite0": EncoderFamily(
            "networks.encoders.efficientnet_lite0:EfficientNetLite0Encoder",
            "bilinear",
            16,
            (),
            ("efficientnet_lite0", "efficientnet-lite0"),
        ),
    },
)

# Families that the published method names and that this version does not implement yet.
NOT_BUILT = Registry("encoder family", {"qwen": ("qwen2_5_vl", "qwen"), "mae": ("vit_mae", "mae"), "eva": ("eva",)})


def model_config_of(vfm_name: str) -> dict | None:
    """The `config.json` of a local model folder, or None if `vfm_name` is not a readable one."""
    path = Path(vfm_name) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def resolve_family(vfm_name: str, family: str | None = None) -> str:
    """The family of an encoder: the explicit key, else the model's own `config.json`, else its name.

    Only the last component of a name counts: a folder called `.../mae/dinov2-large` holds a DINOv2.

    Raises: UserError if none of the three tells, or the family is not built yet.
    """
    if family is not None:
        if family in NOT_BUILT:
            raise UserError(_not_built(vfm_name, family))
        FAMILIES[family]
        return family
    model_type = (model_config_of(vfm_name) or {}).get("model_type")
    last = re.split(r"[/\\]", vfm_name.rstrip("/\\"))[-1].lower()
    for name, entry in FAMILIES.items():
        if model_type in entry.model_types:
            return name
    for name, hints in NOT_BUILT.items():
        if model_type in hints or (model_type is None and any(hint in last for hint in hints)):
            raise UserError(_not_built(vfm_name, name))
    for name, entry in FAMILIES.items():
        if model_type is None and any(hint in last for hint in entry.name_hints):
            return name
    hint = f" Closest to its name: {closest(last, FAMILIES)}."
    raise UserError(
        f"the family of the encoder {vfm_name!r} cannot be told from its name"
        + (f" or its model_type {model_type!r}" if model_type else "")
        + f"; set encoder.family to one of {', '.join(FAMILIES)}.{hint}"
    )


def resolve_patch_size(vfm_name: str, family: str) -> int:
    """Side in pixels behind one token: the model's own config, else `patchN` in its name, else the family's."""
    values = model_config_of(vfm_name) or {}
    own = values.get("patch_size", (values.get("vision_config") or {}).get("patch_size"))
    if isinstance(own, int):
        return own
    last = re.split(r"[/\\]", vfm_name.rstrip("/\\"))[-1]
    named = re.search(r"patch(\d+)", last)
    return int(named.group(1)) if named else FAMILIES[family].patch_size


def _not_built(vfm_name: str, family: str) -> str:
    return f"encoder {vfm_name!r} is of the family {family!r}, which is not built yet. Built: {', '.join(FAMILIES)}."
