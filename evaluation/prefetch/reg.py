"""Moments of latents with their images, as REG reads them: `data.reg_latents`. In two forms with the same content."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.files import write_atomically, write_json_atomically
from common.random import torch_generator
from data.name_tensors import unpack_names
from data.reg_latents import COLUMNS, IMAGES_FOLDER, LATENTS_FOLDER, read_moments, reg_name, sample_moments
from data.row_files import RowFiles
from data.sources import LABEL_FILE
from evaluation.images import png_bytes
from evaluation.posterior import encode_images
from evaluation.prefetch.format import Batch, Encoded, PartWriter, PrefetchFormat, Record
from evaluation.prefetch.parts import Part
from evaluation.prefetch.shard_files import ShardFormat
from evaluation.prefetch.statistics import StatisticsRule, write_measured
from networks.latent import DiagonalGaussian


def stored_moments(posterior: DiagonalGaussian) -> Tensor:
    """Mean and standard deviation of a posterior as one tensor, [B, 2C, h, w]."""
    return torch.cat([posterior.mean, posterior.std], dim=1)


def _encode_moments(model: nn.Module, images: Tensor, keys: Sequence[str], seed: int) -> Encoded:
    """Moments, and for the statistics one draw from each posterior, whose noise is keyed by (seed, name)."""
    posterior = encode_images(model, images, keys, "mode", seed=0).posterior
    if posterior is None:
        raise UserError(
            "--vae-pth: this tokenizer is discrete, so there is no posterior; REG needs the moments of one. Use a "
            "continuous tokenizer, or prefetch for LightningDiT."
        )
    moments = stored_moments(posterior).float().cpu()
    return Encoded({"moments": moments}, (_draw(moments, [reg_name(key) for key in keys], seed),))


def _draw(moments: Tensor, names: Sequence[str], seed: int) -> Tensor:
    """One latent of each posterior [B, 2C, h, w] for statistics: z = mean + std * eps, [B, C, h, w]."""
    shape = moments.shape[1] // 2, *moments.shape[2:]
    noise = [torch.randn(shape, generator=torch_generator(seed, "latent_statistics", name)) for name in names]
    return sample_moments(moments, torch.stack(noise))


class RegShardFormat(ShardFormat):
    """Columns `moments` [n, 2C, h, w] and `images` [n, 3, R, R] in safetensors files.

    Args:
        with_images: also store the crops, which REG needs for its target encoder.
        stats, seed: what the statistics are taken of, and the key of their draws.
    """

    name = "reg-safetensors"
    file_stem = "moments"

    def __init__(self, with_images: bool = True, stats: StatisticsRule = "all", seed: int = 0):
        self._with_images, self._stats, self._seed = with_images, stats, seed

    def identity(self) -> dict[str, Any]:
        return {"images": self._with_images, "seed": self._seed}

    def check_key(self, key: str) -> None:
        super().check_key(key)
        reg_name(key)

    def encode(self, model: nn.Module, images: Tensor, keys: Sequence[str]) -> Encoded:
        encoded = _encode_moments(model, images, keys, self._seed)
        return Encoded(encoded.columns | {"images": images.cpu()}, encoded.latents) if self._with_images else encoded

    def finish(self, folder: Path, records: Sequence[Record]) -> dict[str, Any]:
        rows = RowFiles(self.shards(folder, records), {name: COLUMNS[name] for name in ("moments", "labels", "names")})

        def latent(row: int) -> Tensor:
            (key,) = unpack_names(rows.row("names", row)[None])
            return _draw(rows.row("moments", row)[None], [reg_name(key)], self._seed)[0]

        statistics = write_measured(folder, self._stats, records, len(rows), latent, self._seed)
        return super().finish(folder, records) | {"statistics": statistics}


class RegFolderFormat(PrefetchFormat):
    """One .npy and one PNG file per image.

    Args:
        with_images: also write the PNG files, which REG needs for its target encoder.
        stats, seed: what the statistics are taken of, and the key of their draws.
        images_folder, latents_folder: names of the two sub-folders.
        workers: threads that write.
    """

    name = "reg"

    def __init__(
        self,
        with_images: bool = True,
        stats: StatisticsRule = "all",
        seed: int = 0,
        images_folder: str = IMAGES_FOLDER,
        latents_folder: str = LATENTS_FOLDER,
        workers: int = 4,
    ):
        self._with_images, self._stats, self._seed, self._workers = with_images, stats, seed, workers
        self._images_folder, self._latents_folder = images_folder, latents_folder

    @property
    def _suffixes(self) -> dict[str, str]:
        """Sub-folder -> suffix of its files."""
        latents = {self._latents_folder: ".npy"}
        return {**latents, self._images_folder: ".png"} if self._with_images else latents

    def identity(self) -> dict[str, Any]:
        return {"folders": self._suffixes, "seed": self._seed}

    def check_key(self, key: str) -> None:
        super().check_key(key)
        reg_name(key)

    def encode(self, model: nn.Module, images: Tensor, keys: Sequence[str]) -> Encoded:
        return _encode_moments(model, images, keys, self._seed)

    def open_part(self, folder: Path, part: Part) -> PartWriter:
        images = folder / self._images_folder if self._with_images else None
        return _FileWriter(folder / self._latents_folder, images, part.rank, self._workers)

    def is_whole(self, folder: Path, record: Record) -> bool:
        return all(
            (folder / sub / f"{name}{suffix}").is_file()
            for sub, suffix in self._suffixes.items()
            for name, _ in record["labels"]
        )

    def finish(self, folder: Path, records: Sequence[Record]) -> dict[str, Any]:
        names = [name for record in records for name, _ in record["labels"]]
        latents = folder / self._latents_folder

        def latent(number: int) -> Tensor:
            moments = torch.from_numpy(read_moments(latents / f"{names[number]}.npy"))
            return _draw(moments[None], [names[number]], self._seed)[0]

        for sub, suffix in self._suffixes.items():
            _write_labels(folder / sub, suffix, records)
        statistics = write_measured(latents, self._stats, records, len(names), latent, self._seed)
        parts = [{"part": r["part"], "rows": r["rows"], "sha256": r["sha256"]} for r in records]
        return {"parts": parts, "statistics": statistics}


def _write_labels(folder: Path, suffix: str, records: Sequence[Record]) -> None:
    """`dataset_rank<r>.json` with the labels of each rank's files, and `dataset.json` with those of all."""
    by_rank: dict[int, list] = {}
    for record in records:
        labels = [[f"{name}{suffix}", label] for name, label in record["labels"]]
        by_rank.setdefault(record["rank"], []).extend(labels)
    path = folder / LABEL_FILE
    for rank, labels in by_rank.items():
        write_json_atomically(path.with_stem(f"{path.stem}_rank{rank}"), {"labels": labels}, indent=None)
    write_json_atomically(path, {"labels": [pair for labels in by_rank.values() for pair in labels]}, indent=None)


class _FileWriter:
    """Writes the files of each batch in threads while the next one is computed.

    Args:
        latents, images: the two sub-folders; no PNG files without the second.
        rank: of the process whose share the part is.
        workers: threads.
    """

    def __init__(self, latents: Path, images: Path | None, rank: int, workers: int):
        self._latents, self._images, self._rank = latents, images, rank
        self._labels: list[tuple[str, int]] = []
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(workers)
        self._pending: deque[Future[bytes]] = deque()

    def add(self, batch: Batch, encoded: Encoded) -> None:
        self._collect(keep=2 * len(batch.keys))
        for key, label, image, moments in zip(batch.keys, batch.labels, batch.images, encoded.columns["moments"]):
            name = reg_name(key)
            self._labels.append((name, label))
            self._submit(self._latents / f"{name}.npy", _npy_bytes, moments)
            if self._images is not None:
                self._submit(self._images / f"{name}.png", png_bytes, image)

    def finish(self) -> dict[str, Any]:
        with self._pool:
            self._collect(keep=0)
        digest = self._digest.hexdigest()
        return {"rows": len(self._labels), "rank": self._rank, "labels": self._labels, "sha256": digest}

    def _submit(self, path: Path, encode: Callable[[Tensor], bytes], value: Tensor) -> None:
        def write() -> bytes:
            content = encode(value)
            write_atomically(path, lambda partial: partial.write_bytes(content))
            return content

        self._pending.append(self._pool.submit(write))

    def _collect(self, keep: int) -> None:
        """Wait until at most so many files are still being written; raises what went wrong there."""
        while len(self._pending) > keep:
            self._digest.update(self._pending.popleft().result())


def _npy_bytes(moments: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, moments.numpy())
    return buffer.getvalue()
