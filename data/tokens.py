"""Tokens that were computed beforehand, as autoregressive models are trained on them (docs/latents.md).

    folder/*.safetensors    tokens: uint16 [n, A, N], of A views of each image, row by row; labels [n]
    folder/index.json       `plan`: codes, grid and the tokenizer's fingerprint

files in order of name -> rows -> one of the views -> micro-batches

Which view is taken depends on the seed and on the position alone, so batches depend neither on ranks, workers and
accumulation nor on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import DataError
from common.random import keyed_seed
from data.config import GPTDataConfig
from data.order import SampleOrder
from data.prefetch_index import INDEX_FILE, list_shards, read_index
from data.prefetched_stream import PrefetchedStream
from data.row_files import Column, RowFiles
from data.skips import Skip
from data.stream import Share
from data.token_kind import TokenKind

COLUMNS = {"tokens": Column(("U16",), 3), "labels": Column(("I64",), 1)}


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch.

    Args:
        tokens: int64 [b, N].
        labels: class indices, int64 [b].
        positions: the positions that the samples stand at.
        skips, conversions: always empty, for tokens that cannot be read end the run.
    """

    tokens: Tensor
    labels: Tensor
    positions: range
    skips: list[Skip] = field(default_factory=list)
    conversions: dict[str, int] = field(default_factory=dict)

    def pin_memory(self) -> TokenBatch:
        """The same batch in page-locked memory (called by the loader)."""
        return replace(self, tokens=self.tokens.pin_memory(), labels=self.labels.pin_memory())


class TokenFolder:
    """The tokens of a folder.

    Attributes:
        path: the folder.
        kind: whose tokens they are.
        views: A.

    Raises: DataError that names the file which is missing, damaged or does not fit.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        shards = list_shards(self.path)
        index = read_index(self.path)
        if index is None:
            raise DataError(
                f"{self.path / INDEX_FILE}: missing; it says whose tokens these are. Write them with "
                "tools/preprocess_for_gpt/prefetch.py."
            )
        self.kind = TokenKind.from_json(index["plan"], str(self.path / INDEX_FILE))
        self._rows = RowFiles(shards, COLUMNS)
        self._files = index.get("files")
        self.views, tokens = self._rows.shape("tokens")
        if tokens != self.kind.tokens:
            raise DataError(
                f"{self._rows.paths[0]}: tokens: found {tokens} per image, expected {self.kind.tokens}, a grid of "
                f"{self.kind.grid[0]} x {self.kind.grid[1]}, as {INDEX_FILE} beside it says; write them again."
            )

    def __len__(self) -> int:
        return len(self._rows)

    def labels(self) -> Tensor:
        """All class indices, int64 [n]."""
        return torch.cat(list(self._rows.blocks("labels", 65536)))

    def label(self, index: int) -> int:
        """Class index of an image."""
        return int(self._rows.row("labels", index))

    def item(self, index: int, view: int) -> Tensor:
        """Tokens of a view of an image, int64 [N]. Raises: DataError if one is no code."""
        tokens = self._rows.row("tokens", index)[view].long()
        if (largest := int(tokens.max())) >= self.kind.codes:
            path, row = self._rows.place(index)
            raise DataError(
                f"{path}: tokens: row {row}, view {view}: found the token {largest}, expected 0 to "
                f"{self.kind.codes - 1}, as {INDEX_FILE} beside it has {self.kind.codes} codes; write the tokens again."
            )
        return tokens

    def fingerprint(self) -> str:
        """SHA-256 over labels, kind and views, and over the files by the hashes that the prefetch has left."""
        facts = [len(self), self.views, self.kind.to_json(), self._files]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(self.labels().numpy().tobytes())
        return digest.hexdigest()

    def require_fit(self, vocab_size: int, block_size: int, num_classes: int) -> None:
        """Refuse tokens that a network cannot be trained on.

        Raises: DataError if codes or tokens per image are not the network's, or a label is no class of it.
        """
        self.kind.require_fit(str(self.path / INDEX_FILE), vocab_size, block_size)
        labels = self.labels()
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise DataError(
                f"{self.path}: found the label {int(wrong[0])} ({len(wrong):,} of {len(labels):,} are no class), but "
                f"network.num_classes is {num_classes}: expected labels from 0 to {num_classes - 1}."
            )


class _MicroBatches(Dataset):
    """Micro-batches by their first position."""

    def __init__(self, folder: TokenFolder, order: SampleOrder, size: int):
        self._folder, self._order, self._size = folder, order, size

    def __getitem__(self, start: int) -> TokenBatch | DataError:
        """The micro-batch that starts at a position; an error is returned, for the main process to raise."""
        positions = range(start, start + self._size)
        indices = [self._order.sample_at(position) for position in positions]
        views = [keyed_seed(self._order.seed, "view of the tokens", p) % self._folder.views for p in positions]
        try:
            tokens = [self._folder.item(index, view) for index, view in zip(indices, views)]
        except DataError as error:
            return error
        labels = torch.tensor([self._folder.label(index) for index in indices])
        return TokenBatch(torch.stack(tokens), labels, positions)


class TokenStream(PrefetchedStream):
    """The tokens of a run, as one rank sees them.

    Args:
        folder: checked to fit the network.
        config: how they are loaded.
        seed: the run's seed; with the step, all that the batches depend on.
        share: what this rank takes of every step.

    In a distributed run every rank must build it.
    Raises: DataError if the ranks found different tokens.
    """

    def __init__(self, folder: TokenFolder, config: GPTDataConfig, seed: int, share: Share):
        self.folder = folder
        dataset = _MicroBatches(folder, SampleOrder([len(folder)], 1, seed), share.micro_batch)
        super().__init__(dataset, config, share, folder.fingerprint(), "tokens")
        if config.one_epoch:
            self.steps = self._steps_per_epoch

    @property
    def _steps_per_epoch(self) -> int:
        return -(-len(self.folder) // self.share.global_batch)

    def describe(self) -> str:
        """What was found, for the log of a run's start."""
        kind = self.folder.kind
        return (
            f"Data: {len(self.folder):,} images in {self.folder.path}, {self.folder.views} views of {kind.grid[0]} x "
            f"{kind.grid[1]} tokens of {kind.codes:,} codes each; {self._steps_per_epoch:,} steps of "
            f"{self.share.global_batch} per epoch"
        )
