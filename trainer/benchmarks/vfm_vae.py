"""What is timed of VFM-VAE: its encoder, adapter and decoder, both phases of a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from evaluation.prefetch.lightningdit import LightningDiTFormat
from networks.encoders.loading import empty_encoder
from networks.vfm_vae import VFMVAETokenizer
from trainer.benchmarks.plan import Plan, Request
from trainer.benchmarks.tokenizer import build, measurable, plan_of, require_room
from trainer.dry_run import (
    discriminator_cost,
    made_up_conditioning,
    made_up_label,
    peak_activations,
    saved_bytes,
)
from trainer.systems.vfm_vae import VFMVAESystem

if TYPE_CHECKING:
    from configs.vfm_vae import VFMVAEExperiment


def plan(request: Request) -> Plan:
    """The parts of one call of `encode` and `decode`, and the training."""
    config, left_out = measurable(request)
    if config.decoder.reads_texts:
        left_out["text model"] = "class texts are embedded once in a run; the embeddings are made up"
    if config.equivariance.use_equivariance_regularization:
        left_out["equivariance"] = "every step runs at full size; a step with a smaller scale costs less"
        off = type(config.equivariance)(use_equivariance_regularization=False)
        config = config.model_copy(update={"equivariance": off})
    require_room(config, request.device, _kept_bytes(config))

    subject = build(config, left_out, VFMVAESystem, request.device)
    model, images, generator = subject.system.average, subject.images, subject.generator
    conditioning = made_up_conditioning(model, len(images), request.device)
    if config.decoder.reads_texts:
        subject.system.embed_texts = lambda texts: conditioning
    parts = {
        "encoder": subject.of_encoder(lambda: model.encoder(images)),
        "adapter": subject.inference(lambda: model.fuse(subject.features, generator)),
        "encode": subject.of_encoder(lambda: model.encode(images, generator)),
        "decode": subject.inference(lambda: model.decode(subject.latent, conditioning)),
    }
    return plan_of(subject, parts, request, LightningDiTFormat())


def _kept_bytes(config: VFMVAEExperiment) -> float:
    """Activations in fp32 that a step keeps."""
    with torch.device("meta"):
        encoder = empty_encoder(config.encoder, with_text=True) if config.decoder.reads_texts else None
        model = VFMVAETokenizer(config.tokenizer(), encoder)
    count = config.training.batch_size
    kept = saved_bytes(model, config, count)
    if not config.discriminator.enabled:
        return kept
    return peak_activations(kept, discriminator_cost(config, count, made_up_label(model, count)), config)
