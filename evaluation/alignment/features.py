"""Feature files: one vector per image with its name, in the published `.pt` form or as `.safetensors`.

`.pt`           {"features": float32 [N, D], "names": [stem, ...], "transformations": [dict, ...], ...}, no objects
`.safetensors`  tensors `features` and `names` (uint8 [N, longest]); everything else as JSON in the metadata
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import DataError
from common.files import write_atomically
from common.torch_file import read_torch_file
from data.name_tensors import pack_names, unpack_names

SUFFIXES = (".pt", ".safetensors")
_METADATA = "facts"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureSet:
    """Features of images.

    Args:
        features: float32 [N, D], one image per row.
        names: one per row.
        transformations: what was done to each image, plain values; may be empty where a file does not say.
        facts: what else the file says: the model, its weights, counts.
        origin: where it comes from, for messages.
    """

    features: Tensor
    names: tuple[str, ...]
    transformations: tuple[dict[str, Any], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    origin: str = "features"

    def __len__(self) -> int:
        return len(self.names)


def write_features(path: str | Path, found: FeatureSet) -> None:
    """Write a file of the form that its suffix names; it is whole or absent."""
    path = Path(path)
    require_suffix(path)
    facts = {**found.facts, "transformations": list(found.transformations)}
    if path.suffix == ".pt":
        content = {"features": found.features.contiguous(), "names": list(found.names), **facts}
        write_atomically(path, lambda partial: torch.save(content, partial))
    else:
        tensors = {"features": found.features.contiguous(), "names": pack_names(found.names)}
        write_atomically(path, lambda partial: save_file(tensors, partial, {_METADATA: json.dumps(facts)}))


def read_features(path: str | Path) -> FeatureSet:
    """Read a feature file; nothing in it is ever executed.

    Raises: DataError or CheckpointError if it is missing, damaged, or holds something else.
    """
    path = Path(path)
    require_suffix(path)
    if not path.is_file():
        raise DataError(f"{path}: does not exist; expected a feature file (tools/evaluate_alignment/extract.py).")
    content = _read_torch(path) if path.suffix == ".pt" else _read_safetensors(path)
    features, names = content.pop("features"), content.pop("names")
    transformations = content.pop("transformations", None) or []
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        raise DataError(f"{path}: features: found {_describe(features)}, expected a float tensor [N, D].")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: names: found {_describe(names)}, expected a list of texts.")
    if len(names) != len(features) or len(transformations) not in (0, len(names)):
        raise DataError(
            f"{path}: found {len(features)} rows of features, {len(names)} names and {len(transformations)} "
            "transformations; expected as many of each."
        )
    if not names:
        raise DataError(f"{path}: holds no image.")
    finite = features.isfinite().all(1)
    if not finite.all():
        first = names[int((~finite).nonzero()[0])]
        raise DataError(
            f"{path}: features of {int((~finite).sum())} images are not finite, such as {first}; extract them again."
        )
    plain = tuple({key: _plain(value) for key, value in record.items()} for record in transformations)
    return FeatureSet(features.float(), tuple(names), plain, content, str(path))


def require_suffix(path: Path) -> None:
    """Raise DataError unless the suffix is that of a feature file."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: found the suffix {path.suffix!r}, expected {' or '.join(SUFFIXES)}.")


def _read_torch(path: Path) -> dict[str, Any]:
    content = read_torch_file(path)
    if not isinstance(content, dict) or not {"features", "names"} <= content.keys():
        keys = f"the keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else _describe(content)
        raise DataError(f"{path}: found {keys}, expected a feature file with `features` and `names`.")
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            missing = {"features", "names"} - set(file.keys())
            if missing:
                raise DataError(f"{path}: has no tensor {' and '.join(sorted(missing))}, expected a feature file.")
            facts = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            return {**facts, "features": file.get_tensor("features"), "names": unpack_names(file.get_tensor("names"))}
    except (SafetensorError, ValueError, OSError) as error:
        raise DataError(f"{path}: no safetensors file, or damaged ({error}).") from error


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
    return type(value).__name__


def _plain(value: Any) -> Any:
    """Published files hold numbers as tensors of one element."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


# --- matching by name ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matched:
    """Several feature sets, brought to the same images in the same order.

    Args:
        names: the images, sorted.
        features: one [len(names), D_i] per set.
        left_out: images that not every set has.
    """

    names: tuple[str, ...]
    features: list[Tensor]
    left_out: int


def match_images(sets: Sequence[FeatureSet], min_overlap: float = 0.95) -> Matched:
    """Match rows by the names of the images; of rows with one name the first is taken.

    Args:
        min_overlap: least share of the images of the largest set that all sets must have.

    Raises: DataError if fewer are common to all.
    """
    places = [first_places(found.names) for found in sets]
    common = set.intersection(*(set(place) for place in places))
    everything = set.union(*(set(place) for place in places))
    if len(common) < min_overlap * max(map(len, places)) or not common:
        raise DataError(_too_few(sets, places, common, min_overlap))
    repeated = sum(len(found) - len(place) for found, place in zip(sets, places))
    if repeated or len(common) < len(everything):
        log.warning(
            "%d images are compared; left out: %d that not all files have, %d rows of a name that came before.",
            len(common),
            len(everything) - len(common),
            repeated,
        )
    names = tuple(sorted(common))
    rows = [torch.tensor([place[name] for name in names]) for place in places]
    return Matched(names, [found.features[row] for found, row in zip(sets, rows)], len(everything) - len(common))


def first_places(names: Sequence[str]) -> dict[str, int]:
    """The row of each name; of rows with one name the first counts."""
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        places.setdefault(name, place)
    return places


def _too_few(sets: Sequence[FeatureSet], places: Sequence[dict[str, int]], common: set[str], min_overlap: float) -> str:
    """Names the largest set and the one that has least of its images."""
    most = max(range(len(sets)), key=lambda i: len(places[i]))
    least = min(range(len(sets)), key=lambda i: len(places[i].keys() & places[most].keys()))
    missing = min(set(places[most]) - common)
    return (
        f"{sets[most].origin} and {sets[least].origin}: found {len(common)} images common to all files of up to "
        f"{len(places[most])} ({len(common) / len(places[most]):.1%}), expected at least {min_overlap:.1%}; for "
        f"example {missing!r} is not in all of them. Extract both from the same images, or lower --min-overlap."
    )
