"""Tokens of REG's target encoders that were computed beforehand (docs/diffusion.md).

    folder/tokens_000000000.safetensors, ...    tokens_0, tokens_1, ... [n, 1 + N, D_i]: of each encoder, class token
                                                first; the number is that of the file's first item
    folder/manifest.json                        status, of which encoders, of which items

Rows, file after file in order of name, are the items of the latents in order of their names.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import DataError
from data.reg_latents import RegSource
from data.row_files import FLOATS, Column, RowFiles

MANIFEST_FILE = "manifest.json"


def items_fingerprint(source: RegSource) -> str:
    """SHA-256 over the names of all items in their order."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.name(index).encode() + b"\0")
    return digest.hexdigest()


def tokens_file(first: int) -> str:
    """Name of the file whose rows begin with an item."""
    return f"tokens_{first:09d}.safetensors"


class TargetTokens:
    """The tokens of a folder.

    Args:
        folder: what tools/preprocess_for_reg/prefetch_features.py wrote.
        source: the latents that they go with.

    Attributes:
        encoders: what the manifest says of the encoders: their names and the `sha256` of their weights.
        widths: D_i of each encoder.

    Raises: DataError that names the file if the folder is not finished, damaged, or of other latents.
    """

    def __init__(self, folder: str | Path, source: RegSource):
        folder = Path(folder)
        manifest = _read_manifest(folder / MANIFEST_FILE)
        if manifest["items"] != len(source) or manifest["items_sha256"] != items_fingerprint(source):
            raise DataError(
                f"{folder / MANIFEST_FILE}: these tokens are of {manifest['items']:,} other items than the "
                f"{len(source):,} latents; prefetch the features of these latents."
            )
        self.encoders: dict[str, Any] = manifest["target_encoders"]
        self._columns = [f"tokens_{i}" for i in range(len(self.encoders["vfm_names"]))]
        paths = sorted(folder.glob("tokens_*.safetensors"))
        if not paths:
            raise DataError(f"{folder}: no tokens_*.safetensors files; prefetch the features again.")
        self._rows = RowFiles(paths, {name: Column(FLOATS, 3) for name in self._columns})
        if len(self._rows) != len(source):
            raise DataError(f"{folder}: found {len(self._rows):,} rows, expected {len(source):,}; a file is missing.")
        self.widths = [self._rows.shape(name)[1] for name in self._columns]

    def require_tokens(self, count: int) -> None:
        """Refuse tokens of another grid than a network's. Raises: DataError.

        Args:
            count: tokens of the network, the class token included.
        """
        found = [self._rows.shape(name)[0] for name in self._columns]
        if found != [count] * len(found):
            raise DataError(f"{self._rows.paths[0]}: found {found[0]} tokens, expected {count}, those of the network.")

    def item(self, index: int) -> list[Tensor]:
        """The tokens of each encoder for one item, float32 [1 + N, D_i]."""
        return [self._rows.row(name, index).float() for name in self._columns]


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); prefetch the features of these latents.") from error
    if manifest.get("status") != "complete":
        raise DataError(f"{path}: the prefetch into this folder has not ended; start the same command again.")
    return manifest
