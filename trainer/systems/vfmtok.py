"""The system `vfmtok`: trains the discrete tokenizer on a frozen vision foundation model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.random import keyed_draws
from common.value_range import uint8_to_unit, unit_to_signed
from data.pipeline import Batch
from losses.interfaces import LossInputs
from losses.objective import total
from networks.discriminators.backbone import TappedViT
from networks.encoders.base import VisionEncoder
from networks.vfmtok.tokenizer import VFMTokOutput, VFMTokTokenizer
from trainer.systems import adversarial
from trainer.systems.base import MicroStep, Phase, whole_pass_precision
from trainer.systems.tokenizer import TokenizerSystem

if TYPE_CHECKING:
    from configs.vfmtok import VFMTokExperiment


@dataclass(frozen=True)
class _Pair:
    """Reconstructions and their targets, [B, 3, S, S] in [-1, 1], without gradient."""

    fake: Tensor
    real: Tensor


class VFMTokSystem(TokenizerSystem):
    """Objective and step of VFMTok; see `TokenizerSystem`.

    The tokenizer is trained first; the discriminator then sees the reconstructions of that same pass.
    """

    config: VFMTokExperiment
    tokenizer: VFMTokTokenizer

    def __init__(
        self,
        config: VFMTokExperiment,
        device: torch.device,
        encoder: VisionEncoder | None = None,
        backbone: TappedViT | None = None,
    ):
        super().__init__(config, device, encoder, backbone)
        self._to_judge: dict[int, _Pair] = {}  # by micro-batch
        if self.adversary is not None:
            self.phases.append(self.adversary.phase)

    def build_network(self, encoder: VisionEncoder) -> VFMTokTokenizer:
        return VFMTokTokenizer(self.config.tokenizer(), encoder)

    @staticmethod
    def describe(config: VFMTokExperiment, ranks: int) -> str:
        """Shapes, parameters, and estimates of memory and time per kimg."""
        from trainer.vfmtok_dry_run import describe

        return describe(config, ranks)

    def ema_beta(self, nimg: int) -> float:
        """The same in every step."""
        return self.config.training.ema_decay

    # --- a step ----------------------------------------------------------------------------------------------------

    def backward(self, phase: Phase, batch: Batch, at: MicroStep) -> dict[str, Tensor]:
        """One micro-batch of a phase."""
        if phase.name == adversarial.PHASE:
            pair = self._to_judge.pop(at.micro_batch)
            return self.adversary.backward(pair.fake, pair.real, None, at)
        return self._train_tokenizer(batch, at)

    def _train_tokenizer(self, batch: Batch, at: MicroStep) -> dict[str, Tensor]:
        if at.is_first:
            self._to_judge.clear()  # what a refused step has left
        images = uint8_to_unit(batch.images.to(self.device, non_blocking=True))
        output = self._pass(images, at)
        moment = self.warmup.moment(at.nimg)
        inputs = self._loss_inputs(images, output)
        values = self.objective.reconstruction_terms(inputs, moment) | self.objective.latent_terms(inputs, moment)
        if self.objective.needs("fake", moment):
            inputs = replace(inputs, fake=self.adversary.of_reconstruction(inputs.reconstruction, None, at))
            values |= self.objective.adversarial_terms(inputs, moment)
        touching = [inputs.reconstruction, inputs.semantic, output.latent.quantized.codes]
        (total(values, touching=touching) * at.share).backward()
        if self.adversary is not None and self.adversary.takes_part(at.nimg):
            self._to_judge[at.micro_batch] = _Pair(inputs.reconstruction.detach(), inputs.target)
        return self.report(values) | self.follow_usage(output.latent, at)

    def _pass(self, images: Tensor, at: MicroStep) -> VFMTokOutput:
        with (
            keyed_draws(at.seed, "dropout", at.step, at.micro_batch, device=self.device),
            whole_pass_precision(self.config.training, self.device),
        ):
            return self.generator(images)

    def _loss_inputs(self, images: Tensor, output: VFMTokOutput) -> LossInputs:
        return LossInputs(
            target=unit_to_signed(images),
            reconstruction=output.decoded.reconstruction.float(),
            latent=output.latent,
            semantic=output.predicted.float(),
            semantic_target=output.latent.features.levels[-1],
        )

    def after_step(self, values: Mapping[str, float]) -> None:
        """Nothing follows a step."""
        assert "loss/total" in values

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Weights say it all."""
        assert not state
