"""The discriminators of a training: what they are trained on, and what they tell the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import CheckpointError
from common.random import keyed_seed, torch_generator
from losses.interfaces import DiscriminatorInputs
from losses.objective import Objective, details, total
from losses.schedule import blur_sigma
from losses.warmup import DiscriminatorWarmup
from networks.config import DiscriminatorConfig
from networks.discriminators.backbone import TappedViT
from networks.discriminators.blur import blur_images
from networks.discriminators.discriminators import Discriminators
from networks.discriminators.loading import build_discriminators
from networks.fingerprint import weights_fingerprint
from networks.interfaces import Verdict
from trainer.config import AdamConfig
from trainer.parallel import distribute
from trainer.systems.base import MicroStep, Phase

PHASE = "discriminator"


class Adversary:
    """Discriminators with their optimiser's phase, their warm-up and the draws of their augmentation.

    They compute in fp32 whatever `training.precision` says (see `Discriminators`).

    Args:
        config: which discriminators.
        objective: the run's terms.
        warmup: which discriminators wait for another loss to settle.
        optimizer: options of their optimiser.
        max_loss: a loss of theirs beyond this makes a step unsafe.
        interpolation: how images are resized for them.
        label_dim: width of the labels that they are conditioned on; 0 for none.
        seed: of their initial weights.
        device: where they live.
        backbone: their frozen network; None: the one that the configuration names.
        resolution: side of the images; the StyleGAN2-like discriminator is built for it.

    Raises: UserError if the weights of their frozen backbone are missing.
    """

    def __init__(
        self,
        config: DiscriminatorConfig,
        objective: Objective,
        warmup: DiscriminatorWarmup,
        optimizer: AdamConfig,
        max_loss: float,
        interpolation: str,
        label_dim: int,
        seed: int,
        device: torch.device,
        backbone: TappedViT | None = None,
        resolution: int | None = None,
    ):
        self.config, self.objective, self.warmup = config, objective, warmup
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, "initial weights of the discriminators"))
            self.discriminators = build_discriminators(config, interpolation, label_dim, backbone, resolution).to(
                device
            )
        projected = self.discriminators.projected
        self.backbone_sha256 = None if projected is None else weights_fingerprint(projected.backbone.state_dict())
        self.judge = distribute(_Judge(self.discriminators))
        self.phase = Phase(
            PHASE,
            self.judge,
            {name: p for name, p in self.discriminators.named_parameters() if p.requires_grad},
            optimizer,
            bounded_losses={
                f"{PHASE}/{name}{part}": max_loss
                for name in objective.discriminator_names()
                for part in ("", "/fake_loss", "/real_loss")
            },
        )

    def takes_part(self, nimg: int) -> bool:
        """Whether any term of the discriminators counts, so that there is something to train them on."""
        moment = self.warmup.moment(nimg)
        return any(self.objective.discriminators_need(name, moment) for name in DiscriminatorInputs.__annotations__)

    def backward(self, fake: Tensor, real: Tensor, label: Tensor | None, at: MicroStep) -> dict[str, Tensor]:
        """One micro-batch of the discriminators' phase; gradients reach the discriminators only.

        Args:
            fake, real: reconstructions and their targets, [B, 3, S, S] in [-1, 1], without gradient.
            label: [B, label_dim]; None where they are not conditioned.
        """
        self._start_norms(at)
        moment = self.warmup.moment(at.nimg)
        shuffled = None
        if self.objective.discriminators_need("fake_shuffled", moment):
            assert label is not None, "losses.matching_aware shuffles labels"
            order = torch.randperm(len(label), generator=self._generator("wrong labels", at))
            shuffled = label[order.to(label.device)]
        sigma = self._sigma(at)
        inputs = self.judge(
            blur_images(fake, sigma),
            blur_images(real, sigma),
            label,
            shuffled,
            self._generator("augmentation of reconstructions, discriminator phase", at),
            self._generator("augmentation of targets, discriminator phase", at),
        )
        values = self.objective.discriminator_terms(inputs, moment)
        loss = total(values, touching=[*inputs.fake.logits(), *inputs.real.logits()])
        (loss * at.share).backward()
        report = {f"{PHASE}/{name}": value.loss for name, value in values.items()}
        report |= {f"{PHASE}/{name}": value for name, value in details(values).items()}
        report[f"{PHASE}/total"] = loss
        return {name: value.detach().float() for name, value in report.items()}

    def of_reconstruction(self, image: Tensor, label: Tensor | None, at: MicroStep) -> Verdict:
        """What the discriminators say of a reconstruction; gradients reach the image, not their weights."""
        self._start_norms(at)
        generator = self._generator("augmentation of reconstructions, generator phase", at)
        with without_weight_gradients(self.discriminators):
            return self.discriminators(blur_images(image, self._sigma(at)), label, generator, update_norms=True)

    @torch.no_grad()
    def of_target(self, image: Tensor, label: Tensor | None, at: MicroStep) -> Verdict:
        """What they say of a target, for the features that a reconstruction is compared with."""
        generator = self._generator("augmentation of targets, generator phase", at)
        return self.discriminators(blur_images(image, self._sigma(at)), label, generator, update_norms=True)

    def _start_norms(self, at: MicroStep) -> None:
        """Let the power iterations of every micro-batch of a phase start from the same vectors.

        So they advance as in a step of one micro-batch, and how a batch is split changes nothing.
        """
        vectors = [b for name, b in self.discriminators.named_buffers() if name.endswith(("weight_u", "weight_v"))]
        if at.is_first:
            self._norms_at_start = [vector.clone() for vector in vectors]
            return
        for vector, start in zip(vectors, self._norms_at_start, strict=True):
            vector.copy_(start)

    def _sigma(self, at: MicroStep) -> float:
        return blur_sigma(at.nimg, self.config.blur_init_sigma, self.config.blur_fade_kimg)

    @staticmethod
    def _generator(purpose: str, at: MicroStep) -> torch.Generator:
        return torch_generator(at.seed, purpose, at.step, at.micro_batch)

    def facts(self) -> dict[str, Any]:
        """Identity of the frozen backbone, for a checkpoint's manifest."""
        return {"backbone": self.config.backbone, "sha256": self.backbone_sha256}

    def require_same_backbone(self, recorded: Mapping[str, Any], where: str) -> None:
        """Refuse a frozen backbone with other weights than the one that a checkpoint's discriminators stand on.

        Raises: CheckpointError if they differ.
        """
        if recorded["sha256"] != self.backbone_sha256:
            raise CheckpointError(
                f"{where}: its discriminators were trained on another frozen backbone than the one that discriminator."
                "backbone and discriminator.dino_path give now; point them to the same weights."
            )


class _Judge(nn.Module):
    """Both sides of the discriminators' comparison in one forward pass, as data-parallel training needs it."""

    def __init__(self, discriminators: Discriminators):
        super().__init__()
        self.discriminators = discriminators

    def forward(
        self,
        fake: Tensor,
        real: Tensor,
        label: Tensor | None,
        shuffled: Tensor | None,
        fake_generator: torch.Generator,
        real_generator: torch.Generator,
    ) -> DiscriminatorInputs:
        judged = [
            self.discriminators(fake, label, fake_generator, update_norms=True),
            self.discriminators(real, label, real_generator, update_norms=True),
        ]
        if shuffled is not None:
            judged.append(self.discriminators(fake, shuffled, fake_generator, update_norms=True))
            judged.append(self.discriminators(real, shuffled, real_generator, update_norms=True))
        return DiscriminatorInputs(*judged)


@contextmanager
def without_weight_gradients(module: nn.Module) -> Iterator[None]:
    """Let gradients flow through a module to its input, and not to its weights."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
