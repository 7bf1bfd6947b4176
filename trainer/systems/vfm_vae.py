"""The system `vfm_vae`: trains the tokenizer on a frozen vision foundation model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import DataError
from common.random import keyed_seed, python_generator, torch_generator
from common.resize import resize_images
from common.value_range import signed_to_unit, uint8_to_unit, unit_to_signed, unit_to_uint8
from losses.adaptive_weight import adaptive_weight
from losses.interfaces import LossInputs
from losses.objective import Objective, Value, details, total
from losses.schedule import Moment
from networks.checkpoint import has_noise_maps, load_weights, read_weights, require_same_encoder
from networks.checkpoint.folder import encoder_facts, model_config_values
from networks.conditioning import Labels, TextCache
from networks.encoders.loading import encoder_fingerprint, load_encoder
from networks.equivariance import IDENTITY, EquivarianceTransform, draw_transform
from networks.interfaces import Conditioning, TokenizerOutput
from networks.quantizer import Quantized, usage_percent
from networks.vfm_vae import VFMVAETokenizer
from trainer.freeze import select_trainable, trained_parameters
from trainer.parallel import distribute
from trainer.systems.base import MicroStep, Phase

if TYPE_CHECKING:
    from configs.schema import VFMVAEExperiment
    from data.pipeline import Batch


class VFMVAESystem:
    """Networks, objective and step of VFM-VAE.

    Args:
        config: the run's configuration.
        device: where the networks live.
        encoder: the frozen encoder; None: the one that the configuration names.

    Raises: UserError if the encoder or the weights of a loss cannot be loaded.
    """

    def __init__(self, config: VFMVAEExperiment, device: torch.device, encoder: nn.Module | None = None):
        self.config = config
        self.device = device
        self.interpolation = config.encoder.interpolation()
        if encoder is None:
            encoder = load_encoder(config.encoder, config.decoder.reads_texts)
        self.encoder_sha256 = encoder_fingerprint(encoder.state_dict())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(config.run.random_seed, "initial weights"))
            tokenizer = VFMVAETokenizer(config.tokenizer(), encoder, noise=_has_noise(config))
        self.selection = select_trainable(tokenizer, config.training)
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

    def backward(self, phase: Phase, batch: Batch, at: MicroStep) -> dict[str, Tensor]:
        """One micro-batch of the generator phase."""
        assert phase.name == "generator"
        images = uint8_to_unit(batch.images.to(self.device, non_blocking=True))
        transform = self._draw_transform(at)
        noise = torch_generator(at.seed, "posterior", at.step, at.micro_batch, device=self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.training.precision == "bf16"):
            output = self.generator(
                images, noise, transform, cut_at_latent=True, update_average=at.is_first, c=self._labels(batch)
            )
        moment = Moment(at.nimg)
        inputs = self._loss_inputs(images, output, transform, moment)
        reconstruction_values = self.objective.reconstruction_terms(inputs, moment)
        latent_values = self.objective.latent_terms(inputs, moment)
        latent_values = self._backward(output, reconstruction_values, latent_values, at.share)
        report = self._report(reconstruction_values, latent_values)
        if output.latent.quantized is not None:
            report |= self._follow_usage(output.latent.quantized, at)
        return report

    def _backward(
        self,
        output: TokenizerOutput,
        reconstruction_values: Mapping[str, Value],
        latent_values: Mapping[str, Value],
        share: float,
    ) -> dict[str, Value]:
        """Decoder first, then the encoder side from the decoder's gradient at the latent.

        So the adaptive VF weight, which compares the gradients of the reconstruction terms and of the VF loss at the
        last layer before the latent, costs no second pass through the decoder and the perceptual losses. Returns the
        latent terms with the weights that were used.
        """
        z, z_leaf = output.latent.z, output.decoder_input
        images = [output.decoded.reconstruction, *output.decoded.pyramid.values()]
        (total(reconstruction_values, touching=images) * share).backward()
        decoder_gradient = torch.zeros_like(z) if z_leaf.grad is None else z_leaf.grad
        latent_values = dict(latent_values)
        if not z.requires_grad:  # the encoder side is frozen
            return latent_values
        if "vf" in latent_values and self.config.losses.vf.use_adaptive_vf_loss:
            vf, last = latent_values["vf"], self.tokenizer.compression.last_weight
            (from_images,) = torch.autograd.grad(z, last, decoder_gradient / share, retain_graph=True)
            (from_vf,) = torch.autograd.grad(vf.loss, last, retain_graph=True)
            latent_values["vf"] = replace(vf, weight=vf.weight * adaptive_weight(from_images, from_vf))
        touching = [z]
        if output.latent.projected is not None:
            touching.append(output.latent.projected)
        if output.latent.quantized is not None:
            touching.append(output.latent.quantized.codes)
        latent_total = total(latent_values, touching=touching) * share
        torch.autograd.backward([z, latent_total], [decoder_gradient, torch.ones_like(latent_total)])
        return latent_values

    def _follow_usage(self, quantized: Quantized, at: MicroStep) -> dict[str, Tensor]:
        """Advance the codebooks' usage, which sees one batch of all ranks a step; report how much of them this used."""
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

    def _draw_transform(self, at: MicroStep) -> EquivarianceTransform:
        c = self.config.equivariance
        if not c.use_equivariance_regularization:
            return IDENTITY
        rng = python_generator(at.seed, "equivariance", at.step, at.micro_batch)
        return draw_transform(rng, c.equivariance_regularization_p_prior, c.equivariance_regularization_p_prior_scale)

    def _loss_inputs(
        self, images: Tensor, output: TokenizerOutput, transform: EquivarianceTransform, moment: Moment
    ) -> LossInputs:
        target = transform.apply_to_target(images, self.interpolation)
        pyramid_targets = {}
        if self.objective.needs("pyramid_targets", moment):
            pyramid_targets = {
                side: unit_to_signed(resize_images(target, self.interpolation, size=tuple(image.shape[-2:])))
                for side, image in output.decoded.pyramid.items()
            }
        aligned_to = None
        if self.objective.needs("aligned_to", moment):
            aligned_to = output.latent.features.as_map(self.config.encoder.patch_from_layers.index(-1))
        return LossInputs(
            target=unit_to_signed(target),
            reconstruction=output.decoded.reconstruction,
            pyramid=output.decoded.pyramid,
            pyramid_targets=pyramid_targets,
            latent=output.latent,
            aligned_to=aligned_to,
        )

    def _report(
        self, reconstruction_values: Mapping[str, Value], latent_values: Mapping[str, Value]
    ) -> dict[str, Tensor]:
        values = {**reconstruction_values, **latent_values}
        report = {f"loss/{name}": value.loss for name, value in values.items()}
        report |= {f"loss/{name}": value for name, value in details(values).items()}
        report["loss/total"] = total(values, touching=[torch.zeros((), device=self.device)])
        if "vf" in values:
            report["weight/vf"] = torch.as_tensor(values["vf"].weight, device=self.device)
        return {name: value.detach().float() for name, value in report.items()}

    def model_config(self) -> dict[str, Any]:
        return model_config_values(self.config.tokenizer())

    def facts(self) -> dict[str, Any]:
        return {"encoder": encoder_facts(self.config.tokenizer(), self.encoder_sha256)}

    def require_same_frozen_parts(self, manifest: Mapping[str, Any], where: str) -> None:
        require_same_encoder(self.encoder_sha256, manifest["encoder"]["sha256"], where)

    def frozen_tensors(self) -> dict[str, Tensor]:
        return {f"encoder.{name}": value for name, value in self.tokenizer.encoder.state_dict().items()}

    def frozen_config(self) -> dict[str, Any] | None:
        return self.tokenizer.encoder.model_config

    def load_initial(self, path: str, with_discriminators: bool) -> str:
        for weights, model in (("raw", self.tokenizer), ("ema", self.average)):
            load_weights(model, read_weights(path, weights), path)
        return f"weights and EMA of the tokenizer from {path}"

    def summary(self) -> str:
        encoder = sum(p.numel() for p in self.tokenizer.encoder.parameters())
        rest = self.selection.frozen - encoder
        return (
            f"{self.config.training.train_mode}: {self.selection.trainable:,} trainable parameters, "
            f"{encoder:,} in the frozen encoder, {rest:,} frozen otherwise."
        )

    @torch.no_grad()
    def sample_images(self, batch: Batch) -> Tensor:
        """Reconstructions by the EMA, without noise of the posterior."""
        z = self.average.encode(uint8_to_unit(batch.images.to(self.device)), noise=torch.zeros(())).z
        reconstruction = self.average.decode(z, self._labels(batch)).reconstruction
        return unit_to_uint8(signed_to_unit(reconstruction), "nearest")


def _has_noise(config: VFMVAEExperiment) -> bool:
    """Whether the decoder carries noise maps: what the configuration says, else what the initial weights have."""
    if config.decoder.legacy is not None or config.training.init_from is None:
        return bool(config.decoder.legacy)
    return has_noise_maps(read_weights(config.training.init_from))
