"""The system `vfm_vae`: trains the tokenizer on a frozen vision foundation model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import DataError
from common.random import keyed_seed, python_generator, torch_generator
from common.resize import resize_images
from common.value_range import signed_to_unit, uint8_to_unit, unit_to_signed, unit_to_uint8
from data.pipeline import Batch, TrainingData
from evaluation.reconstruction import Protocol, reconstruct_batch
from evaluation.validation import Validation, ValidationResult
from losses.adaptive_weight import adaptive_weight
from losses.interfaces import LossInputs
from losses.objective import Objective, Value, details, total
from losses.schedule import Moment
from losses.warmup import DiscriminatorWarmup
from networks.checkpoint import has_noise_maps, load_weights, origin_of, read_weights, require_same_encoder
from networks.checkpoint.folder import encoder_facts, model_config_values, write_encoder_files
from networks.conditioning import Labels, TextCache, text_width
from networks.discriminators.backbone import TappedViT
from networks.discriminators.loading import load_discriminator_weights, read_discriminator_weights
from networks.encoders.loading import load_encoder
from networks.equivariance import IDENTITY, EquivarianceTransform, draw_transform
from networks.fingerprint import weights_fingerprint
from networks.interfaces import Conditioning, TokenizerOutput
from networks.quantizer import usage_percent
from networks.vfm_vae import VFMVAETokenizer
from trainer.ema import ema_beta
from trainer.freeze import select_trainable, trained_parameters
from trainer.parallel import distribute
from trainer.systems import adversarial
from trainer.systems.adversarial import Adversary
from trainer.systems.base import Initial, MicroStep, Phase, Pictures, Prepared, share_of_rank

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
        of_reconstruction: of the reconstruction terms alone, which the adaptive VF weight refers to.
    """

    total: Tensor
    of_reconstruction: Tensor


class VFMVAESystem:
    """Networks, objective and step of VFM-VAE.

    Args:
        config: the run's configuration.
        device: where the networks live.
        encoder: the frozen encoder; None: the one that the configuration names.
        backbone: the discriminators' frozen network; None: the one that the configuration names.

    Raises: UserError if the encoder or the weights of a loss cannot be loaded.
    """

    def __init__(
        self,
        config: VFMVAEExperiment,
        device: torch.device,
        encoder: nn.Module | None = None,
        backbone: TappedViT | None = None,
    ):
        self.config = config
        self.device = device
        self.interpolation = config.encoder.interpolation()
        if encoder is None:
            encoder = load_encoder(config.encoder, config.decoder.reads_texts)
        self.encoder_sha256 = weights_fingerprint(encoder.state_dict())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(config.run.random_seed, "initial weights"))
            tokenizer = VFMVAETokenizer(config.tokenizer(), encoder, noise=_has_noise(config))
        self.selection = select_trainable(tokenizer, config.training)
        if config.training.precision == "fp16" and device.type == "cuda":
            tokenizer.decoder.fp16_blocks = config.decoder.num_fp16_res
        memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
        self.tokenizer = tokenizer.to(device, memory_format=memory_format)
        self.average = copy.deepcopy(self.tokenizer, memo={id(encoder): encoder}).eval().requires_grad_(False)
        self.tokenizer.train()
        if config.decoder.reads_texts:
            self.embed_texts: Callable[[Sequence[str]], Conditioning] = encoder.text_encoder
            if config.data.label_type == "cls2text":  # few texts, again and again
                self.embed_texts = TextCache(encoder.text_encoder, with_tokens=config.decoder.use_cross_attn)
        self.objective = Objective(config.enabled_losses()).to(device)
        self.networks: dict[str, nn.Module] = {"tokenizer": self.tokenizer.trainable_parts()}
        self.averages: dict[str, nn.Module] = {"tokenizer": self.average.trainable_parts()}
        self.generator = distribute(self.tokenizer)
        self.phases = [
            Phase(
                "generator",
                self.generator,
                trained_parameters(self.tokenizer),
                config.optimizer.generator,
                reconstruction_losses=frozenset(f"loss/{name}" for name in self.objective.names("reconstruction")),
            )
        ]
        self.warmup = DiscriminatorWarmup(stylegan_t=_waits(config, "stylegan_t"), patchgan=_waits(config, "patchgan"))
        self.adversary: Adversary | None = None
        self._shared: dict[int, Pass] = {}
        if config.discriminator.enabled:
            self.adversary = Adversary(
                config.discriminator,
                self.objective,
                self.warmup,
                config.optimizer.discriminator,
                config.guard.max_discriminator_loss,
                self.interpolation,
                label_dim=_label_dim(config, encoder),
                seed=config.run.random_seed,
                device=device,
                backbone=backbone,
            )
            self.networks["discriminators"] = self.adversary.discriminators.trainable_parts()
            self.phases.insert(0, self.adversary.phase)
        self.sample_ticks = config.logging.image_snapshot_ticks
        self.validation = _open_validation(config, device)

    @classmethod
    def prepare(cls, config: VFMVAEExperiment, device: torch.device, pin_memory: bool) -> Prepared:
        """Open the shards or folders, then build the networks."""
        share = share_of_rank(config.training, pin_memory)
        data = TrainingData(config.data, config.run.random_seed, **vars(share))
        return Prepared(data, cls(config, device))

    @staticmethod
    def describe(config: VFMVAEExperiment, ranks: int) -> str:
        """Shapes, parameters, and estimates of memory and time per kimg."""
        from trainer.dry_run import describe

        return describe(config, ranks)

    def ema_beta(self, nimg: int) -> float:
        """By a half-life in images, which grows with them at first."""
        training = self.config.training
        return ema_beta(nimg, training.batch_size, training.ema_kimg, training.ema_rampup)

    def takes_part(self, phase: Phase, nimg: int) -> bool:
        """The discriminators are trained only while a term of theirs counts."""
        return phase.name != adversarial.PHASE or self.adversary.takes_part(nimg)

    def backward(self, phase: Phase, batch: Batch, at: MicroStep) -> dict[str, Tensor]:
        """One micro-batch of a phase."""
        if phase.name == adversarial.PHASE:
            return self._train_discriminators(batch, at)
        return self._train_tokenizer(batch, at)

    def _train_discriminators(self, batch: Batch, at: MicroStep) -> dict[str, Tensor]:
        if self.config.training.share_generator_forward:
            passed = self._shared[at.micro_batch] = self._pass(self.generator, batch, at, "")
        else:
            with torch.no_grad():
                passed = self._pass(self.tokenizer, batch, at, ", discriminator phase")
        fake = passed.output.decoded.reconstruction.detach()
        target = unit_to_signed(passed.transform.apply_to_target(passed.images, self.interpolation))
        return self.adversary.backward(fake, target, passed.label, at)

    def _train_tokenizer(self, batch: Batch, at: MicroStep) -> dict[str, Tensor]:
        passed = self._shared.pop(at.micro_batch, None) or self._pass(self.generator, batch, at, "")
        moment = self.warmup.moment(at.nimg)
        inputs = self._loss_inputs(passed, batch, moment, at)
        image_values, gradients = self._backward_through_decoder(passed, inputs, moment, at)
        latent_values = self.objective.latent_terms(inputs, moment)
        latent_values = self._backward_through_encoder_side(passed.output, latent_values, gradients, moment, at)
        report = self._report({**image_values, **latent_values})
        return report | self._follow_usage(passed.output, at)

    def _pass(self, network: nn.Module, batch: Batch, at: MicroStep, purpose: str) -> Pass:
        """A pass of the tokenizer, cut at the latent; `purpose` sets its draws apart from those of other passes."""
        images = uint8_to_unit(batch.images.to(self.device, non_blocking=True))
        transform = self._draw_transform(at, purpose)
        noise = torch_generator(at.seed, f"posterior{purpose}", at.step, at.micro_batch, device=self.device)
        condition = self.tokenizer.condition(self._labels(batch), len(images))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.training.precision == "bf16"):
            output = network(images, noise, transform, cut_at_latent=True, update_average=at.is_first, c=condition)
        return Pass(images, transform, None if condition is None else condition.label, output)

    def _backward_through_decoder(
        self, passed: Pass, inputs: LossInputs, moment: Moment, at: MicroStep
    ) -> tuple[dict[str, Value], AtLatent | None]:
        """All terms on images: their gradients at the images first, then back through the decoder to the latent.

        The adaptive VF weight needs the gradient of the reconstruction terms alone at the latent. Next to adversarial
        terms that takes a second pass through the decoder, but none through a perceptual loss or a discriminator.
        Returns the terms, and the gradients at the latent (None if the encoder side is frozen).
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
        if judged and z.requires_grad and self._has_adaptive_weight(moment):
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
            (from_images,) = torch.autograd.grad(z, last, gradients.of_reconstruction / at.share, retain_graph=True)
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

    def _follow_usage(self, output: TokenizerOutput, at: MicroStep) -> dict[str, Tensor]:
        """Advance the codebooks' usage, which sees one batch of all ranks a step; report how much of them this used."""
        quantized = output.latent.quantized
        if quantized is None:
            return {}
        shares = self.tokenizer.quantizer.code_shares(quantized.indices)
        if at.is_first:
            self.tokenizer.quantizer.track_usage(shares, earlier=at.step)
        return {"latent/codebook_usages": usage_percent(shares)}

    def _labels(self, batch: Batch) -> Labels:
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

    def _report(self, values: Mapping[str, Value]) -> dict[str, Tensor]:
        report = {f"loss/{name}": value.loss for name, value in values.items()}
        report |= {f"loss/{name}": value for name, value in details(values).items()}
        report["loss/total"] = total(values, touching=[torch.zeros((), device=self.device)])
        if "vf" in values:
            report["weight/vf"] = torch.as_tensor(values["vf"].weight, device=self.device)
        return {name: value.detach().float() for name, value in report.items()}

    def after_step(self, values: Mapping[str, float]) -> None:
        """Let the warm-up look at a step; discriminators that it starts take part from the next one on."""
        pixel_loss = values.get("loss/l1_pixel", values.get("loss/l2_pixel"))
        for name in self.warmup.update(pixel_loss, values.get("loss/stylegan_t")):
            log.info("The warm-up of losses.%s is over.", name)
        self._freeze()

    def _freeze(self) -> None:
        """Train what the train mode says, or the second half of the decoder once a PatchGAN came in by a warm-up."""
        config = self.config.training.model_copy(update={"train_mode": self._train_mode()})
        selection = select_trainable(self.tokenizer, config)
        if selection == self.selection:
            return
        log.info("Trained from now on: %s.", ", ".join(selection.modules))
        self.selection, self.generator = selection, distribute(self.tokenizer)
        self.phases[-1] = replace(self.phases[-1], module=self.generator)

    def _train_mode(self) -> str:
        return "train_the_second_half_decoder" if self.warmup.freezes_first_half else self.config.training.train_mode

    def state_dict(self) -> dict[str, Any]:
        return {"warmup": self.warmup.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.warmup.load_state_dict(state["warmup"])
        self._freeze()

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
            load_weights(model, read_weights(path, weights), path)
        taken = "weights and EMA of the tokenizer"
        if self.adversary is not None and self.config.training.init_discriminator:
            state = read_discriminator_weights(path)
            if state:
                load_discriminator_weights(self.adversary.discriminators, state, path)
                taken += " and its discriminators"
            else:
                log.warning("%s: holds no discriminators; those of this run start from their initial weights.", path)
        return Initial(f"{taken} from {path}", origin_of(path))

    def summary(self) -> str:
        encoder = sum(p.numel() for p in self.tokenizer.encoder.parameters())
        rest = self.selection.frozen - encoder
        text = (
            f"{self._train_mode()}: {self.selection.trainable:,} trainable parameters, "
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
        reconstruction = self.average.decode(z, self._labels(batch)).reconstruction
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
        return reconstruct_batch(self.average, images, batch.keys, protocol, self._labels(batch))


def _open_validation(config: VFMVAEExperiment, device: torch.device) -> Validation | None:
    if config.validation is None:
        return None
    data = config.validation.as_data(config.data, with_labels=config.decoder.conditional)
    vgg16_path = config.losses.perceptual.vgg16_path if config.losses.perceptual else None
    return Validation(config.validation, data, vgg16_path, config.logging.image_snapshot_count, device)


def _waits(config: VFMVAEExperiment, name: str) -> bool:
    """Whether a discriminator's term is held back by a warm-up."""
    term = config.enabled_losses().get(name)
    return term is not None and term.use_disc_warmup


def _label_dim(config: VFMVAEExperiment, encoder: nn.Module) -> int:
    """Width of the labels that the discriminators are conditioned on, as the decoder is; 0 for none."""
    c = config.decoder
    if not c.conditional:
        return 0
    return text_width(encoder) if c.reads_texts else c.label_dim


def _has_noise(config: VFMVAEExperiment) -> bool:
    """Whether the decoder carries noise maps: what the configuration says, else what the initial weights have."""
    if config.decoder.legacy is not None or config.training.init_from is None:
        return bool(config.decoder.legacy)
    return has_noise_maps(read_weights(config.training.init_from))
