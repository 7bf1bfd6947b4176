"""What the systems that train a tokenizer have in common: networks, checkpoints, validation, samples."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from common.random import keyed_seed
from common.registry import import_object
from common.value_range import signed_to_unit, uint8_to_unit, unit_to_uint8
from data.pipeline import Batch, TrainingData
from evaluation.reconstruction import Protocol, reconstruct_batch
from evaluation.validation import Validation, ValidationResult
from losses.objective import Objective, Value, details, total
from losses.warmup import DiscriminatorWarmup
from networks import TOKENIZERS
from networks.checkpoint import load_weights, names_of, origin_of, read_weights, require_same_encoder
from networks.checkpoint.folder import encoder_facts, model_config_values, write_encoder_files
from networks.checkpoint.loading import Tokenizer
from networks.conditioning import Labels
from networks.discriminators.backbone import TappedViT
from networks.discriminators.loading import load_discriminator_weights, read_discriminator_weights
from networks.encoders.base import VisionEncoder
from networks.encoders.loading import load_encoder
from networks.fingerprint import weights_fingerprint
from networks.interfaces import Latent
from networks.quantizer import usage_percent
from trainer.freeze import Selection, trained_parameters
from trainer.parallel import distribute
from trainer.systems import adversarial
from trainer.systems.adversarial import Adversary
from trainer.systems.base import Initial, MicroStep, Phase, Pictures, Prepared, share_of_rank

if TYPE_CHECKING:
    from configs.tokenizer import TokenizerExperiment

log = logging.getLogger(__name__)

GENERATOR = "generator"  # the phase that trains the tokenizer


class TokenizerSystem(ABC):
    """A tokenizer on a frozen encoder with its EMA, an objective, and discriminators if the configuration has some.

    A subclass says how a step is computed, and adds the discriminators' phase where it belongs.

    Args:
        config: the run's configuration.
        device: where the networks live.
        encoder: the frozen encoder; None: the one that the configuration names.
        backbone: the discriminators' frozen network; None: the one that the configuration names.

    Raises: UserError if the encoder or the weights of a loss cannot be loaded.
    """

    def __init__(
        self,
        config: TokenizerExperiment,
        device: torch.device,
        encoder: VisionEncoder | None = None,
        backbone: TappedViT | None = None,
    ):
        self.config = config
        self.device = device
        self.interpolation = config.encoder.interpolation()
        if encoder is None:
            encoder = load_encoder(config.encoder, config.tokenizer().reads_texts)
        self.encoder_sha256 = weights_fingerprint(encoder.state_dict())
        self.warmup = self.warmup_of_discriminators()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(config.run.random_seed, "initial weights"))
            self.tokenizer = self.build_network(encoder)
        self.selection = self.select_trainable()
        memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
        self.tokenizer = self.tokenizer.to(device, memory_format=memory_format)
        self.average = copy.deepcopy(self.tokenizer, memo={id(encoder): encoder}).eval().requires_grad_(False)
        self.tokenizer.train()
        self.objective = Objective(config.enabled_losses()).to(device)
        self.networks: dict[str, nn.Module] = {"tokenizer": self.tokenizer.trainable_parts()}
        self.averages: dict[str, nn.Module] = {"tokenizer": self.average.trainable_parts()}
        self.generator = distribute(self.tokenizer)
        self.phases = [
            Phase(
                GENERATOR,
                self.generator,
                trained_parameters(self.tokenizer),
                config.optimizer.generator,
                reconstruction_losses=frozenset(f"loss/{name}" for name in self.objective.names("reconstruction")),
            )
        ]
        self.adversary: Adversary | None = None
        if config.discriminator.enabled:
            self.adversary = Adversary(
                config.discriminator,
                self.objective,
                self.warmup,
                config.optimizer.discriminator,
                config.guard.max_discriminator_loss,
                self.interpolation,
                label_dim=self.label_dim(),
                seed=config.run.random_seed,
                device=device,
                backbone=backbone,
                resolution=config.data.resolution,
            )
            self.networks["discriminators"] = self.adversary.discriminators.trainable_parts()
        self.sample_ticks = config.logging.image_snapshot_ticks
        self.validation = _open_validation(config, device)

    # --- what a subclass says ------------------------------------------------------------------------------------

    @abstractmethod
    def build_network(self, encoder: VisionEncoder) -> Tokenizer:
        """The tokenizer with initial weights."""

    def select_trainable(self) -> Selection:
        """Switch gradients on for what is trained: all that its initial weights leave trainable, but the encoder."""
        trainable = sum(p.numel() for p in self.tokenizer.parameters() if p.requires_grad)
        count = sum(p.numel() for p in self.tokenizer.parameters())
        return Selection(list(self.tokenizer.trainable_parts()), trainable, count - trainable)

    def warmup_of_discriminators(self) -> DiscriminatorWarmup:
        """Which discriminators wait for another loss to settle."""
        return DiscriminatorWarmup(stylegan_t=False, patchgan=False)

    def label_dim(self) -> int:
        """Width of the labels that the discriminators are conditioned on; 0 for none."""
        return 0

    def labels(self, batch: Batch) -> Labels:
        """What the decoder depends on besides the latent."""
        return None

    # --- a run -----------------------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls, config: TokenizerExperiment, device: torch.device, pin_memory: bool) -> Prepared:
        """Open the shards or folders, then build the networks."""
        share = share_of_rank(config.training, pin_memory)
        data = TrainingData(config.data, config.run.random_seed, **vars(share))
        return Prepared(data, cls(config, device))

    def takes_part(self, phase: Phase, nimg: int) -> bool:
        """The discriminators are trained only while a term of theirs counts."""
        return phase.name != adversarial.PHASE or self.adversary.takes_part(nimg)

    def report(self, values: Mapping[str, Value]) -> dict[str, Tensor]:
        """The terms of a micro-batch for the log."""
        report = {f"loss/{name}": value.loss for name, value in values.items()}
        report |= {f"loss/{name}": value for name, value in details(values).items()}
        report["loss/total"] = total(values, touching=[torch.zeros((), device=self.device)])
        return {name: value.detach().float() for name, value in report.items()}

    def follow_usage(self, latent: Latent, at: MicroStep) -> dict[str, Tensor]:
        """Advance the codebooks' usage, which sees one batch of all ranks a step; report how much of them this used."""
        if latent.quantized is None:
            return {}
        shares = self.tokenizer.quantizer.code_shares(latent.quantized.indices)
        if at.is_first:
            self.tokenizer.quantizer.track_usage(shares, earlier=at.step)
        return {"latent/codebook_usages": usage_percent(shares)}

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def model_config(self) -> dict[str, Any]:
        return model_config_values(self.config.tokenizer())

    def facts(self) -> dict[str, Any]:
        facts = {"encoder": encoder_facts(self.config.tokenizer(), self.encoder_sha256)}
        return facts if self.adversary is None else facts | {"discriminator": self.adversary.facts()}

    def require_same_frozen_parts(self, manifest: Mapping[str, Any], where: str) -> None:
        require_same_encoder(self.encoder_sha256, manifest["encoder"]["sha256"], where)
        if self.adversary is not None:
            self.adversary.require_same_backbone(manifest["discriminator"], where)

    def frozen_tensors(self) -> dict[str, Tensor]:
        if not self.config.checkpoint.include_encoder:
            return {}
        return {f"encoder.{name}": value for name, value in self.tokenizer.encoder.state_dict().items()}

    def write_frozen_files(self, folder: Path) -> None:
        if self.config.checkpoint.include_encoder:
            encoder = self.tokenizer.encoder
            write_encoder_files(folder, encoder.model_config, encoder.text_tokenizer)

    def load_initial(self, path: str) -> Initial:
        for weights, model in (("raw", self.tokenizer), ("ema", self.average)):
            load_weights(model, read_weights(path, weights, names_of(model.config)), path)
        taken = "weights and EMA of the tokenizer"
        if self.adversary is not None and self.config.training.init_discriminator:
            rows = import_object(TOKENIZERS[self.tokenizer.config.MODEL_TYPE].discriminator_names)
            state = read_discriminator_weights(path, rows)
            if state:
                load_discriminator_weights(self.adversary.discriminators, state, path)
                taken += " and its discriminators"
            else:
                log.warning("%s: holds no discriminators; those of this run start from their initial weights.", path)
        return Initial(f"{taken} from {path}", origin_of(path))

    # --- what is shown and measured ----------------------------------------------------------------------------------

    def mode_of_training(self) -> str:
        """What is trained, in a word."""
        return "train_all"

    def summary(self) -> str:
        encoder = sum(p.numel() for p in self.tokenizer.encoder.parameters())
        rest = self.selection.frozen - encoder
        text = (
            f"{self.mode_of_training()}: {self.selection.trainable:,} trainable parameters, "
            f"{encoder:,} in the frozen encoder, {rest:,} frozen otherwise."
        )
        if self.adversary is not None:
            count = sum(p.numel() for p in self.adversary.phase.parameters.values())
            text += f" Discriminators: {count:,} trainable parameters."
        return text

    @torch.no_grad()
    def sample_images(self, batch: Batch) -> Tensor:
        """Reconstructions by the EMA, without noise of the posterior."""
        z = self.average.encode(uint8_to_unit(batch.images.to(self.device)), noise=torch.zeros(())).z
        reconstruction = self.average.decode(z, self.labels(batch)).reconstruction
        return unit_to_uint8(signed_to_unit(reconstruction), "nearest")

    def sample_grid(self, data: TrainingData) -> Pictures:
        """The first images of the order, reconstructed."""
        batch = data.preview(self.config.logging.image_snapshot_count)
        return Pictures("reconstructions", batch.images, self.sample_images(batch))

    def validate(self) -> ValidationResult:
        """Reconstruct and score the validation set."""
        return self.validation.run(self.reconstruct)

    def reconstruct(self, batch: Batch, protocol: Protocol) -> Tensor:
        """Reconstructions by the EMA, as `tools/reconstruct` makes them of a checkpoint."""
        images = batch.images.to(self.device)
        return reconstruct_batch(self.average, images, batch.keys, protocol, self.labels(batch))


def _open_validation(config: TokenizerExperiment, device: torch.device) -> Validation | None:
    if config.validation is None:
        return None
    data = config.validation.as_data(config.data, with_labels=config.tokenizer().conditional)
    vgg16_path = config.losses.perceptual.vgg16_path if config.losses.perceptual else None
    return Validation(config.validation, data, vgg16_path, config.logging.image_snapshot_count, device)
