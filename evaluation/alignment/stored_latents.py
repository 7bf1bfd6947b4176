"""Reader of the latents of the clean images (`evaluation.alignment.latents` writes them), for diffusion models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.errors import DataError
from common.files import sha256_of
from data.latents import STATISTICS_FILE, read_normalisation
from data.name_tensors import unpack_names
from data.prefetch_index import list_shards
from data.row_files import FLOATS, Column, RowFiles
from evaluation.alignment.features import first_places
from evaluation.alignment.latents import CLASS_TOKENS

_COLUMNS = {
    "latents": Column(FLOATS, 4),
    "labels": Column(("I64",), 1),
    "names": Column(("U8",), 2, same_shape=False),
}


@dataclass(frozen=True)
class CleanLatents:
    """What is diffused.

    Args:
        names: one per image.
        latents: normalised as in training, float32 [B, C, h, w].
        labels: class indices, int64 [B].
        class_tokens: float32 [B, D], for a model that diffuses a class token along (REG); else None.
    """

    names: Sequence[str]
    latents: Tensor
    labels: Tensor
    class_tokens: Tensor | None = None


class StoredLatents:
    """The latents of a folder, sorted by name; of rows with one name the first counts.

    Args:
        folder: `latents_*.safetensors`, with `latents_stats.pt` of the diffusion model's training.
        multiplier: applied after the normalisation, as in that training.
        with_class_tokens: read the class tokens too.

    Attributes:
        names: of the images.
        labels: class index of each, int64 [N].
        latent_shape: (C, h, w).
        class_width: D of the class tokens; None if they are not read.
        normalisation: what is done to the latents.

    Raises: DataError that names the file which is missing, damaged or does not fit.
    """

    def __init__(self, folder: str | Path, multiplier: float = 1.0, with_class_tokens: bool = False):
        self.folder = Path(folder)
        self._rows = self._open(with_class_tokens)
        self.latent_shape = self._rows.shape("latents")
        self.class_width = self._rows.shape(CLASS_TOKENS)[0] if with_class_tokens else None
        self.normalisation = read_normalisation(folder, self.latent_shape[0], multiplier)
        places = first_places([name for block in self._rows.blocks("names") for name in unpack_names(block)])
        self.names = sorted(places)
        self._order = [places[name] for name in self.names]
        self.labels = torch.cat(list(self._rows.blocks("labels")))[self._order]

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, numbers: Sequence[int], device: torch.device) -> CleanLatents:
        """The images of these numbers, in the order of `names`."""
        rows = [self._order[number] for number in numbers]

        def stacked(column: str) -> Tensor:
            return torch.stack([self._rows.row(column, row).float() for row in rows]).to(device)

        return CleanLatents(
            [self.names[number] for number in numbers],
            self.normalisation.normalise(stacked("latents")),
            self.labels[list(numbers)].to(device),
            None if self.class_width is None else stacked(CLASS_TOKENS),
        )

    def sha256(self) -> str:
        """Hex SHA-256 over the files and the statistics."""
        digest = hashlib.sha256()
        for path in (*self._rows.paths, self.folder / STATISTICS_FILE):
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
        return digest.hexdigest()

    def _open(self, with_class_tokens: bool) -> RowFiles:
        columns = _COLUMNS | ({CLASS_TOKENS: Column(FLOATS, 2)} if with_class_tokens else {})
        try:
            return RowFiles(list_shards(self.folder), columns)
        except DataError as error:
            option = " with --class-encoder" if with_class_tokens else ""
            raise DataError(
                f"{error} tools/evaluate_alignment/prefetch.py{option} writes what is expected here."
            ) from error
