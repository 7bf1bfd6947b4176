"""What is timed of VFMTok: its encoder side, both passes of its decoding transformer, both phases of a training step.

And deformable attention, of which one layer, its sampling alone and a bare `grid_sample` of as many points are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.random import torch_generator
from evaluation.prefetch.tokens import TokenFormat
from networks.vfmtok.deformable_attention import sample_levels
from networks.vfmtok.region_encoder import reference_points
from networks.vfmtok.tokenizer import VFMTokTokenizer
from trainer.benchmarks.plan import Call, FigureRule, Plan, Request, ratio
from trainer.benchmarks.tokenizer import Subject, build, measurable, plan_of, require_room
from trainer.dry_run import discriminator_cost, kept_bytes
from trainer.systems.vfmtok import VFMTokSystem
from trainer.vfmtok_dry_run import trainable_pass

if TYPE_CHECKING:
    from configs.vfmtok import VFMTokExperiment

ATTENTION, SAMPLING, BARE = "deformable_attention", "deformable_sampling", "grid_sample"


def plan(request: Request) -> Plan:
    """The parts of one call of `encode`, `decode` and `predict_features`, and the training."""
    config, left_out = measurable(request)
    require_room(config, request.device, _kept_bytes(config))
    subject = build(config, left_out, VFMTokSystem, request.device)
    model, images, latent = subject.system.average, subject.images, subject.latent
    parts = {
        "encoder": subject.of_encoder(lambda: model.encoder(images)),
        "region_encoder": subject.inference(lambda: model.region_encoder(subject.features)),
        "encode": subject.of_encoder(lambda: model.encode(images)),
        "decode": subject.inference(lambda: model.decode(latent)),
        "semantic_pass": subject.inference(lambda: model.decoder.predict_features(latent)),
        **_of_deformable_attention(subject),
    }
    kind = TokenFormat("centre", config.data.resolution)
    return plan_of(subject, parts, request, kind, figures=_FIGURES)


def _kept_bytes(config: VFMTokExperiment) -> float:
    """Activations in fp32 that a step keeps."""
    with torch.device("meta"):
        model = VFMTokTokenizer(config.tokenizer(), None).train()
    count = config.training.batch_size
    kept = kept_bytes(lambda: trainable_pass(model, config, count))
    if not config.discriminator.enabled:
        return kept
    judges = discriminator_cost(config, count)
    return max(judges.kept_own, kept + judges.kept_generator)


# --- deformable attention --------------------------------------------------------------------------------------------

_FIGURES: dict[str, FigureRule] = {
    **ratio(SAMPLING, BARE, "weighted sums of sampled values, over sampling alone"),
    **ratio(ATTENTION, BARE, "a layer with its four projections, over sampling alone"),
}


def _of_deformable_attention(subject: Subject) -> dict[str, Call]:
    """One layer of the region encoder in fp32, as it runs there; the sampling in it; and `grid_sample` alone.

    All three look at equal maps, at as many points of every level.
    """
    c, model, grids = subject.config.region_encoder, subject.system.average, subject.features.grids
    count, device = len(subject.images), subject.images.device
    attention = model.region_encoder.layers[0].cross_attention
    generator = torch_generator(0, "benchmark of deformable attention", device=device)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    queries, size = c.num_tokens, c.width // c.heads
    query, levels = drawn(count, queries, c.width), drawn(count, sum(h * w for h, w in grids), c.width)
    reference = reference_points(queries, device)[None, :, None]
    value = levels.unflatten(-1, (c.heads, size))
    locations = drawn(count, queries, c.heads, len(grids), c.num_points, 2)
    weights = drawn(count, queries, c.heads, len(grids), c.num_points)
    maps = [drawn(count * c.heads, size, h, w) for h, w in grids]
    points = [2 * drawn(count * c.heads, queries, c.num_points, 2) - 1 for _ in grids]

    def alone() -> None:
        for level, places in zip(maps, points, strict=True):
            F.grid_sample(level, places, align_corners=False)

    def in_fp32(call: Callable[[], Any]) -> Call:
        return Call(torch.inference_mode()(call))

    return {
        ATTENTION: in_fp32(lambda: attention(query, reference, levels, grids)),
        SAMPLING: in_fp32(lambda: sample_levels(value, locations, weights, grids)),
        BARE: in_fp32(alone),
    }
