"""`--dry-run` of VFMTok: what a configuration builds and what a step costs, on the meta device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.distributed import pick_device
from evaluation.cost import count_flops, gemm_flops_per_second
from networks.encoders.loading import empty_encoder
from networks.vfmtok.tokenizer import VFMTokTokenizer
from trainer.dry_run import (
    ADAM_BYTES_PER_PARAMETER,
    EMA_BYTES_PER_PARAMETER,
    FROZEN_BYTES_PER_PARAMETER,
    as_table,
    count_parameters,
    discriminator_cost,
    encoder_flops,
    kept_bytes,
    made_up_features,
    micro_batch_size,
    rows_of_discriminators,
    shown_count,
    shown_time,
)

if TYPE_CHECKING:
    from configs.vfmtok import VFMTokExperiment


def describe(config: VFMTokExperiment, ranks: int) -> str:
    """Shapes, parameters, and estimates of memory and time per kimg, as a text."""
    with torch.device("meta"):
        encoder = empty_encoder(config.encoder)
        model = VFMTokTokenizer(config.tokenizer(), None).train()
    micro_batch = micro_batch_size(config.training, ranks)
    judges = discriminator_cost(config, micro_batch) if config.discriminator.enabled else None
    count = count_parameters(model)
    parts = {**model.trainable_parts(), **{f"  {name}": part for name, part in model.decoder.named_children()}}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops = 3 * count_flops(lambda: trainable_pass(model, config, micro_batch))
    kept = kept_bytes(lambda: trainable_pass(model, config, micro_batch))
    memory = ADAM_BYTES_PER_PARAMETER * trainable + EMA_BYTES_PER_PARAMETER * count + kept
    at_least = " (without the encoder, whose size is unknown)"
    if encoder is not None:
        at_least = ""
        flops += encoder_flops(encoder, config, micro_batch)
        memory += FROZEN_BYTES_PER_PARAMETER * count_parameters(encoder)
    if judges is not None:
        flops += judges.flops
        memory += ADAM_BYTES_PER_PARAMETER * judges.trainable + FROZEN_BYTES_PER_PARAMETER * judges.frozen
        memory += max(judges.kept_own - kept, judges.kept_generator)
    flops_per_kimg = flops / micro_batch * 1000
    side, shape = config.data.resolution, config.tokenizer()
    return as_table(
        [
            ("images", f"{side} x {side}, micro-batches of {micro_batch} on {ranks} rank{'s' if ranks > 1 else ''}"),
            ("encoder", f"{config.encoder.resolved_family()}, layers {config.encoder.patch_from_layers}"),
            ("tokens", f"{shape.region_encoder.num_tokens} of {shape.codebook.vocab_size:,} codes"),
            (
                "grids",
                f"pixels from {shape.pixel_side()} x {shape.pixel_side()}, features {shape.feature_side()} x "
                f"{shape.feature_side()} of width {shape.feature_width()}",
            ),
            ("trainable parameters", shown_count(trainable)),
            ("frozen encoder", "unknown" if encoder is None else shown_count(count_parameters(encoder))),
            ("frozen otherwise", shown_count(count - trainable)),
            *[(f"  {name}", shown_count(count_parameters(part))) for name, part in parts.items()],
            *rows_of_discriminators(judges),
            (
                "memory per rank",
                f"about {memory / 1e9:.2f} GB in fp32: weights, gradients, Adam, EMA, activations{at_least}",
            ),
            (
                "FLOPs per kimg",
                f"{flops_per_kimg / 1e12:.1f} TFLOP: encoder forward, the rest forward and backward{at_least}",
            ),
            ("time per kimg", shown_time(flops_per_kimg, gemm_flops_per_second(pick_device(config.run.device)), ranks)),
        ]
    )


def trainable_pass(model: VFMTokTokenizer, config: VFMTokExperiment, batch: int) -> list[Tensor]:
    """A forward pass of everything but the encoder on one micro-batch; the model is on the meta device."""
    latent = model.fuse(made_up_features(config, batch, torch.device("meta")))
    return [model.decode(latent.z).reconstruction, model.decoder.predict_features(latent.z)]
