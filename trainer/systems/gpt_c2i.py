"""The system `gpt_c2i`: trains a class-conditional autoregressive model on the tokens of a frozen tokenizer.

Tokens come from a folder that a prefetch wrote, or are made of images in every step. Which labels are dropped is keyed
by the seed and the sample's position, dropout masks by the seed, the step and the global micro-batch: so a resumed run
needs no hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from common.errors import CheckpointError, DataError
from common.random import keyed_draws, python_generator
from data.pipeline import Batch, TrainingData
from data.token_kind import TokenKind
from data.tokens import TokenBatch, TokenFolder, TokenStream
from evaluation.tokens import token_kind, tokens_of_images
from losses.ar import next_token_loss
from networks.ar.folder import SYSTEM, load_gpt_weights
from networks.ar.gpt import GPT
from networks.checkpoint import load_tokenizer
from networks.checkpoint.origin import Origin
from trainer.systems.base import MicroStep, Phase, Prepared, share_of_rank
from trainer.systems.single_network import SingleNetworkSystem

if TYPE_CHECKING:
    from configs.gpt_c2i import GPTExperiment


class GPTSystem(SingleNetworkSystem):
    """A GPT and its step.

    Args:
        config: the run's configuration.
        device: where the networks live.
        kind: whose tokens it is trained on; checked to fit the network.
        tokenizer: in eval mode, on the device; None: batches hold tokens.
    """

    config: GPTExperiment
    network: GPT
    model_type = SYSTEM
    watched_loss = "loss/total"

    def __init__(
        self, config: GPTExperiment, device: torch.device, kind: TokenKind, tokenizer: nn.Module | None = None
    ):
        super().__init__(config, device)
        self.kind, self.tokenizer = kind, tokenizer

    @staticmethod
    def build_network(config: GPTExperiment) -> GPT:
        return GPT(config.network)

    @classmethod
    def prepare(cls, config: GPTExperiment, device: torch.device, pin_memory: bool) -> Prepared:
        """Open the tokens, or the images and the tokenizer, and see whether they fit; then build the network."""
        share, c = share_of_rank(config.training, pin_memory), config.network
        if config.data.source == "tokens":
            folder = TokenFolder(config.data.path)
            folder.require_fit(c.vocab_size, c.block_size, c.num_classes)
            data = TokenStream(folder, config.data, config.run.random_seed, share)
            return Prepared(data, cls(config, device, folder.kind))
        path, side = config.tokenizer.vae_pth, config.data.resolution
        tokenizer = load_tokenizer(path, device=device, weights=config.tokenizer.weights).requires_grad_(False)
        kind = token_kind(tokenizer, side, side)
        kind.require_fit(path, c.vocab_size, c.block_size)
        images = TrainingData(config.data.of_images(), config.run.random_seed, **vars(share))
        return Prepared(images, cls(config, device, kind, tokenizer))

    @classmethod
    def describe(cls, config: GPTExperiment, ranks: int) -> str:
        """Shapes, parameters, and estimates of memory and time per kimg."""
        from trainer.gpt_dry_run import describe

        return describe(config, cls.build_network, ranks)

    def backward(self, phase: Phase, batch: TokenBatch | Batch, at: MicroStep) -> dict[str, Tensor]:
        """One micro-batch, with dropout masks of its own."""
        with keyed_draws(at.seed, "dropout", at.step, at.micro_batch, device=self.device):
            return super().backward(phase, batch, at)

    def losses(self, batch: TokenBatch | Batch) -> dict[str, Tensor]:
        tokens = self.tokens(batch)
        labels = self.to_device(self.with_dropped(batch.labels, batch.positions))
        with self.precision():
            logits = self.model(tokens[:, :-1], labels)
        return {"loss/total": next_token_loss(logits, tokens)}

    def tokens(self, batch: TokenBatch | Batch) -> Tensor:
        """Those of a micro-batch, int64 [b, N]; images become tokens in fp32."""
        if self.tokenizer is None:
            return self.to_device(batch.tokens)
        with torch.no_grad():
            return tokens_of_images(self.tokenizer, self.to_device(batch.images))

    def with_dropped(self, labels: Tensor, positions: range) -> Tensor:
        """Labels [b] of samples at these positions, some replaced by the null class.

        Raises: DataError if one is no class of the network.
        """
        c = self.config.network
        wrong = labels[labels >= c.num_classes]
        if len(wrong):
            raise DataError(
                f"{self.config.data.path}: found the label {int(wrong[0])}, but network.num_classes is "
                f"{c.num_classes}: expected labels from 0 to {c.num_classes - 1}."
            )
        if c.class_dropout_prob == 0:
            return labels
        seed = self.config.run.random_seed
        draws = [python_generator(seed, "label dropout", position).random() for position in positions]
        return torch.where(torch.tensor(draws) < c.class_dropout_prob, self.network.null_label, labels)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def about_data(self) -> dict[str, Any]:
        """Whose tokens it generates."""
        return {"tokens": self.kind.to_json()}

    def facts(self) -> dict[str, Any]:
        return self.about_data()

    def require_same_frozen_parts(self, manifest: Mapping[str, Any], where: str) -> None:
        if manifest["tokens"] != self.kind.to_json():
            raise CheckpointError(
                f"{where}: was trained on tokens of {manifest['tokens']}, but those of this run are "
                f"{self.kind.to_json()}; give back the tokenizer that it was trained with, or start a new run.run_dir "
                "with training.init_from."
            )

    @staticmethod
    def load_weights(network: GPT, path: str, weights: Literal["ema", "raw"]) -> Origin | None:
        return load_gpt_weights(network, path, weights)
