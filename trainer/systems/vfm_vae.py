"""The system `vfm_vae`: trains the tokenizer on a frozen vision foundation model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import DataError
from common.random import python_generator, torch_generator
from common.resize import resize_images
from common.value_range import uint8_to_unit, unit_to_signed
from data.pipeline import Batch
from losses.adaptive_weight import adaptive_weight
from losses.interfaces import LossInputs
from losses.objective import Value, total
from losses.schedule import Moment
from losses.warmup import DiscriminatorWarmup
from networks.checkpoint import read_weights
from networks.conditioning import Labels, TextCache, text_width
from networks.discriminators.backbone import TappedViT
from networks.encoders.base import VisionEncoder
from networks.equivariance import IDENTITY, EquivarianceTransform, draw_transform
from networks.interfaces import Conditioning, Features, TokenizerOutput
from networks.vfm_vae import VFMVAETokenizer, has_noise_maps
from trainer.ema import ema_beta
from trainer.freeze import Selection, select_trainable
from trainer.parallel import distribute
from trainer.systems import adversarial
from trainer.systems.base import MicroStep, Phase
from trainer.systems.tokenizer import TokenizerSystem

if TYPE_CHECKING:
    from configs.vfm_vae import VFMVAEExperiment

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """One pass of the tokenizer over a micro-batch.

    Attributes:
        images: what went in, [B, 3, S, S] in [0, 1].
        transform: equivariance transform of this micro-batch.
        label: what the discriminators are conditioned on, [B, label_dim]; None where they are not.
        output: what came out.
    """

    images: Tensor
    transform: EquivarianceTransform
    label: Tensor | None
    output: TokenizerOutput


@dataclass(frozen=True)
class AtLatent:
    """Gradients that came through the decoder to the latent, [B, C, h, w], scaled by the micro-batch's share.

    Attributes:
        total: of all terms on images.
        for_adaptive_weight: what the adaptive VF weight refers to.
    """

    total: Tensor
    for_adaptive_weight: Tensor


class VFMVAESystem(TokenizerSystem):
    """Objective and step of VFM-VAE; see `TokenizerSystem`."""

    config: VFMVAEExperiment
    tokenizer: VFMVAETokenizer

    def __init__(
        self,
        config: VFMVAEExperiment,
        device: torch.device,
        encoder: VisionEncoder | None = None,
        backbone: TappedViT | None = None,
    ):
        super().__init__(config, device, encoder, backbone)
        self._selected_mode = self.mode_of_training()
        if config.decoder.reads_texts:
            text_encoder = self.tokenizer.encoder.text_encoder
            self.embed_texts: Callable[[Sequence[str]], Conditioning] = text_encoder
            if config.data.label_type == "cls2text":  # few texts, again and again
                self.embed_texts = TextCache(text_encoder, with_tokens=config.decoder.use_cross_attn)
        # What the discriminators' phase leaves to the tokenizer's in the same step, of each micro-batch: a whole pass,
        # or what the frozen encoder made of its images (at a scale), which no phase changes.
        self._passes: dict[tuple[int, int], Pass] = {}
        self._features: dict[tuple[int, int, float], Features] = {}
        if self.adversary is not None:
            self.phases.insert(0, self.adversary.phase)
        if config.training.compile:
            self.tokenizer.decoder.compile(fullgraph=True, dynamic=False)
            if self.adversary is not None:
                self.adversary.discriminators.compile_parts()

    # --- what is trained -----------------------------------------------------------------------------------------

    def build_network(self, encoder: VisionEncoder) -> VFMVAETokenizer:
        tokenizer = VFMVAETokenizer(self.config.tokenizer(), encoder, noise=_has_noise(self.config))
        if self.config.training.precision == "fp16" and self.device.type == "cuda":
            tokenizer.decoder.fp16_blocks = self.config.decoder.num_fp16_res
        tokenizer.decoder.recompute_above(self.config.training.recompute_above_resolution)
        return tokenizer

    def select_trainable(self) -> Selection:
        """What the train mode says, or the second half of the decoder once a PatchGAN came in by a warm-up."""
        config = self.config.training.model_copy(update={"train_mode": self.mode_of_training()})
        return select_trainable(self.tokenizer, config)

    def mode_of_training(self) -> str:
        return "train_the_second_half_decoder" if self.warmup.freezes_first_half else self.config.training.train_mode

    def warmup_of_discriminators(self) -> DiscriminatorWarmup:
        return DiscriminatorWarmup(
            stylegan_t=_waits(self.config, "stylegan_t"), patchgan=_waits(self.config, "patchgan")
        )

    def label_dim(self) -> int:
        """As the decoder's labels are."""
        c = self.config.decoder
        if not c.conditional:
            return 0
        return text_width(self.tokenizer.encoder) if c.reads_texts else c.label_dim

    @staticmethod
    def describe(config: VFMVAEExperiment, ranks: int) -> str:
        """Shapes, parameters, and estimates of memory and time per kimg."""
        from trainer.dry_run import describe

        return describe(config, ranks)

    def ema_beta(self, nimg: int) -> float:
        """By a half-life in images, which grows with them at first."""
        training = self.config.training
        return ema_beta(nimg, training.batch_size, training.ema_kimg, training.ema_rampup)

    def backward(self, phase: Phase, batch: Batch, at: MicroStep) -> dict[str, Tensor]:
        """One micro-batch of a phase."""
        if phase.name == adversarial.PHASE:
            return self._train_discriminators(batch, at)
        return self._train_tokenizer(batch, at)

    def _train_discriminators(self, batch: Batch, at: MicroStep) -> dict[str, Tensor]:
        if at.is_first:  # what a refused step has left
            self._passes.clear()
            self._features.clear()
        if self.config.training.share_generator_forward:
            passed = self._passes[at.step, at.micro_batch] = self._pass(self.generator, batch, at, "")
        else:
            with torch.no_grad():
                passed = self._pass(self.tokenizer, batch, at, ", discriminator phase")
            key = (at.step, at.micro_batch, passed.transform.input_scale)
            self._features[key] = passed.output.latent.features
        fake = passed.output.decoded.reconstruction.detach()
        target = unit_to_signed(passed.transform.apply_to_target(passed.images, self.interpolation))
        return self.adversary.backward(fake, target, passed.label, at)

    def _train_tokenizer(self, batch: Batch, at: MicroStep) -> dict[str, Tensor]:
        passed = self._passes.pop((at.step, at.micro_batch), None) or self._pass(self.generator, batch, at, "")
        moment = self.warmup.moment(at.nimg)
        inputs = self._loss_inputs(passed, batch, moment, at)
        image_values, gradients = self._backward_through_decoder(passed, inputs, moment, at)
        latent_values = self.objective.latent_terms(inputs, moment)
        latent_values = self._backward_through_encoder_side(passed.output, latent_values, gradients, moment, at)
        report = self.report({**image_values, **latent_values})
        if "vf" in latent_values:
            report["weight/vf"] = torch.as_tensor(latent_values["vf"].weight, device=self.device).detach().float()
        return report | self.follow_usage(passed.output.latent, at)

    def _pass(self, network: nn.Module, batch: Batch, at: MicroStep, purpose: str) -> Pass:
        """A pass of the tokenizer, cut at the latent; `purpose` sets its draws apart from those of other passes."""
        images = uint8_to_unit(batch.images.to(self.device, non_blocking=True))
        transform = self._draw_transform(at, purpose)
        noise = torch_generator(at.seed, f"posterior{purpose}", at.step, at.micro_batch, device=self.device)
        condition = self.tokenizer.condition(self.labels(batch), len(images))
        features = self._features.pop((at.step, at.micro_batch, transform.input_scale), None)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.training.precision == "bf16"):
            output = network(
                images,
                noise,
                transform,
                cut_at_latent=True,
                update_average=at.is_first,
                c=condition,
                features=features,
            )
        return Pass(images, transform, None if condition is None else condition.label, output)

    def _backward_through_decoder(
        self, passed: Pass, inputs: LossInputs, moment: Moment, at: MicroStep
    ) -> tuple[dict[str, Value], AtLatent | None]:
        """All terms on images: their gradients at the images first, then back through the decoder to the latent.

        As published, the adaptive VF weight needs the gradient of the reconstruction terms alone at the latent. Next to
        adversarial terms that takes a second pass through the decoder, but none through a perceptual loss or a
        discriminator; `training.share_decoder_backward` saves it. Returns the terms, and the gradients at the latent
        (None if the encoder side is frozen).
        """
        seen = [inputs.reconstruction, *inputs.pyramid.values()]
        values = self.objective.reconstruction_terms(inputs, moment)
        (total(values, touching=seen) * at.share).backward()
        of_reconstruction = [image.grad for image in seen]
        judged = self.objective.adversarial_terms(self._judged(inputs, passed.label, moment, at), moment)
        gradients = list(of_reconstruction)
        if judged:
            loss = total(judged, touching=seen[:1]) * at.share
            gradients[0] = gradients[0] + torch.autograd.grad(loss, seen[0])[0]

        output = passed.output
        images = [output.decoded.reconstruction, *output.decoded.pyramid.values()]
        trained = [i for i, image in enumerate(images) if image.requires_grad]  # lower blocks may be frozen
        images, gradients = [images[i] for i in trained], [gradients[i] for i in trained]
        z, alone = output.decoder_input, None
        is_apart = self._has_adaptive_weight(moment) and not self.config.training.share_decoder_backward
        if judged and z.requires_grad and is_apart:
            of_reconstruction = [of_reconstruction[i] for i in trained]
            (alone,) = torch.autograd.grad(images, z, of_reconstruction, retain_graph=True)
        torch.autograd.backward(images, gradients)
        at_latent = None if z.grad is None else AtLatent(z.grad, z.grad if alone is None else alone)
        return {**values, **judged}, at_latent

    def _judged(self, inputs: LossInputs, label: Tensor | None, moment: Moment, at: MicroStep) -> LossInputs:
        """The inputs with what the discriminators say, as far as any term asks for it."""
        if self.objective.needs("fake", moment):
            inputs = replace(inputs, fake=self.adversary.of_reconstruction(inputs.reconstruction, label, at))
        if self.objective.needs("real", moment):
            inputs = replace(inputs, real=self.adversary.of_target(inputs.target, label, at))
        return inputs

    def _has_adaptive_weight(self, moment: Moment) -> bool:
        return self.objective.counts("vf", moment) and self.config.losses.vf.use_adaptive_vf_loss

    def _backward_through_encoder_side(
        self,
        output: TokenizerOutput,
        values: Mapping[str, Value],
        gradients: AtLatent | None,
        moment: Moment,
        at: MicroStep,
    ) -> dict[str, Value]:
        """The terms on the latent, and the decoder's gradient there, back through the encoder side.

        Returns the terms with the weights that were used.
        """
        z, values = output.latent.z, dict(values)
        if gradients is None:
            return values
        if self._has_adaptive_weight(moment):
            vf, last = values["vf"], self.tokenizer.compression.last_weight
            (from_images,) = torch.autograd.grad(z, last, gradients.for_adaptive_weight / at.share, retain_graph=True)
            (from_vf,) = torch.autograd.grad(vf.loss, last, retain_graph=True)
            values["vf"] = replace(vf, weight=vf.weight * adaptive_weight(from_images, from_vf))
        touching = [z]
        if output.latent.projected is not None:
            touching.append(output.latent.projected)
        if output.latent.quantized is not None:
            touching.append(output.latent.quantized.codes)
        loss = total(values, touching=touching) * at.share
        torch.autograd.backward([z, loss], [gradients.total, torch.ones_like(loss)])
        return values

    def labels(self, batch: Batch) -> Labels:
        """What the decoder depends on besides the latent. Raises DataError if a class is not one that it knows."""
        c = self.config.decoder
        if not c.conditional:
            return None
        if c.reads_texts:
            return self.embed_texts(batch.texts)
        highest = int(batch.labels.max())
        if highest >= c.label_dim:
            raise DataError(
                f"{self.config.data.path}: found class {highest}, but decoder.label_dim is {c.label_dim}; "
                "it must be above every class index of the data set."
            )
        return F.one_hot(batch.labels, c.label_dim).to(self.device, torch.float32)

    def _draw_transform(self, at: MicroStep, purpose: str) -> EquivarianceTransform:
        c = self.config.equivariance
        if not c.use_equivariance_regularization:
            return IDENTITY
        rng = python_generator(at.seed, f"equivariance{purpose}", at.step, at.micro_batch)
        return draw_transform(rng, c.equivariance_regularization_p_prior, c.equivariance_regularization_p_prior_scale)

    def _loss_inputs(self, passed: Pass, batch: Batch, moment: Moment, at: MicroStep) -> LossInputs:
        """What the terms compare; the images are leaves, so that gradients can be taken there."""
        decoded = passed.output.decoded
        target = passed.transform.apply_to_target(passed.images, self.interpolation)
        pyramid_targets = {}
        if self.objective.needs("pyramid_targets", moment):
            pyramid_targets = {
                side: unit_to_signed(resize_images(target, self.interpolation, size=tuple(image.shape[-2:])))
                for side, image in decoded.pyramid.items()
            }
        aligned_to = None
        if self.objective.needs("aligned_to", moment):
            aligned_to = passed.output.latent.features.as_map(self.config.encoder.patch_from_layers.index(-1))
        return LossInputs(
            target=unit_to_signed(target),
            reconstruction=decoded.reconstruction.detach().requires_grad_(),
            pyramid={side: image.detach().requires_grad_() for side, image in decoded.pyramid.items()},
            pyramid_targets=pyramid_targets,
            latent=passed.output.latent,
            aligned_to=aligned_to,
            texts=batch.texts if self.objective.needs("texts", moment) else None,
            generator=torch_generator(at.seed, "crops of the CLIP loss", at.step, at.micro_batch),
        )

    def after_step(self, values: Mapping[str, float]) -> None:
        """Let the warm-up look at a step; discriminators that it starts take part from the next one on."""
        pixel_loss = values.get("loss/l1_pixel", values.get("loss/l2_pixel"))
        for name in self.warmup.update(pixel_loss, values.get("loss/stylegan_t")):
            log.info("The warm-up of losses.%s is over.", name)
        self._freeze()

    def _freeze(self) -> None:
        """Train from now on what is to be trained now."""
        if self.mode_of_training() == self._selected_mode:
            return
        self.selection, self._selected_mode = self.select_trainable(), self.mode_of_training()
        log.info("Trained from now on: %s.", ", ".join(self.selection.modules))
        self.generator = distribute(self.tokenizer)
        self.phases[-1] = replace(self.phases[-1], module=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"warmup": self.warmup.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.warmup.load_state_dict(state["warmup"])
        self._freeze()


def _waits(config: VFMVAEExperiment, name: str) -> bool:
    """Whether a discriminator's term is held back by a warm-up."""
    term = config.enabled_losses().get(name)
    return term is not None and term.use_disc_warmup


def _has_noise(config: VFMVAEExperiment) -> bool:
    """Whether the decoder carries noise maps: what the configuration says, else what the initial weights have."""
    if config.decoder.legacy is not None or config.training.init_from is None:
        return bool(config.decoder.legacy)
    return has_noise_maps(read_weights(config.training.init_from))
