"""`--dry-run`: what a configuration builds and what a step costs, without weights, data or computation.

Networks are built on the meta device, so this works for any size on any machine, also where the encoder's files are
out of reach; what only these files tell is then `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from common.distributed import pick_device
from evaluation.cost import count_flops, gemm_flops_per_second
from networks.conditioning import text_width
from networks.discriminators.loading import empty_discriminators
from networks.encoders.base import VisionEncoder
from networks.encoders.loading import empty_encoder
from networks.encoders.text import MAX_TOKENS
from networks.interfaces import Conditioning, Features, Verdict
from networks.vfm_vae import VFMVAETokenizer
from trainer.freeze import Selection, select_trainable
from trainer.systems.adversarial import without_weight_gradients

if TYPE_CHECKING:
    from configs.tokenizer import TokenizerExperiment
    from configs.vfm_vae import VFMVAEExperiment
    from trainer.config import TrainingConfig

ADAM_BYTES_PER_PARAMETER = 4 * 4  # weight, gradient and two moments in fp32
EMA_BYTES_PER_PARAMETER = 4
FROZEN_BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class DiscriminatorCost:
    """What discriminators add to a training step on one micro-batch. FLOPs and bytes are those of fp32.

    Attributes:
        trainable, frozen: their parameters.
        flops: of what they compute in both phases.
        kept_own: activations in bytes that autograd keeps in the phase that trains them.
        kept_generator: the same in the phase that trains the tokenizer, beside its own.
    """

    trainable: int
    frozen: int
    flops: int
    kept_own: int
    kept_generator: int


@dataclass(frozen=True)
class StepCost:
    """A training step on one micro-batch in fp32: all in all, and the discriminators' part of it."""

    memory: float
    flops: int
    discriminator_memory: float
    discriminator_flops: int


def micro_batch_size(training: TrainingConfig, ranks: int) -> int:
    """Samples of a micro-batch on one rank."""
    return training.batch_size // (ranks * training.accumulate_gradients)


def describe(config: VFMVAEExperiment, ranks: int) -> str:
    """Shapes, parameters, and estimates of memory and time per kimg, as a text."""
    with torch.device("meta"):
        encoder = empty_encoder(config.encoder, config.decoder.reads_texts)
        model = VFMVAETokenizer(config.tokenizer(), encoder)
    selection = select_trainable(model, config.training)
    encoder_count = 0 if encoder is None else count_parameters(encoder)
    micro_batch = micro_batch_size(config.training, ranks)
    judges = None
    if config.discriminator.enabled:
        judges = discriminator_cost(config, micro_batch, made_up_label(model, micro_batch))
    cost = _step_cost(model, selection, judges, config, micro_batch)
    flops_per_kimg = cost.flops / micro_batch * 1000
    peak = gemm_flops_per_second(pick_device(config.run.device))
    at_least = " (without the encoder, whose size is unknown)" if encoder is None else ""
    memory_of_judges = flops_of_judges = ""
    if judges is not None:
        memory_of_judges = f"; {cost.discriminator_memory / 1e9:.2f} GB of it for the discriminators"
        flops_of_judges = f"; {cost.discriminator_flops / cost.flops:.0%} of it for the discriminators"
    side, latent = config.data.resolution, config.tokenizer().latent_side()
    c = config
    rows = [
        ("images", f"{side} x {side}, micro-batches of {micro_batch} on {ranks} rank{'s' if ranks > 1 else ''}"),
        ("encoder", f"{c.encoder.resolved_family()}, layers {c.encoder.patch_from_layers}"),
        ("latent", f"{latent} x {latent} x {c.latent.channels()} ({c.latent.compression_mode})"),
        ("decoder blocks", _blocks(config)),
        ("train mode", c.training.train_mode),
        ("trainable parameters", shown_count(selection.trainable)),
        ("frozen encoder", "unknown" if encoder is None else shown_count(encoder_count)),
        ("frozen otherwise", shown_count(selection.frozen - encoder_count)),
        *[(f"  {name}", shown_count(count_parameters(part))) for name, part in model.trainable_parts().items()],
        *rows_of_discriminators(judges),
        (
            "memory per rank",
            f"about {cost.memory / 1e9:.2f} GB in fp32: weights, gradients, Adam, EMA, activations{at_least}"
            f"{memory_of_judges}",
        ),
        (
            "FLOPs per kimg",
            f"{flops_per_kimg / 1e12:.1f} TFLOP: encoder forward, the rest forward and backward{at_least}"
            f"{flops_of_judges}",
        ),
        ("time per kimg", shown_time(flops_per_kimg, peak, ranks)),
    ]
    return as_table(rows)


def shown_time(flops_per_kimg: float, peak: float, ranks: int) -> str:
    """The least that a thousand images can take.

    Args:
        peak: FLOP/s of one device.
    """
    return (
        f"at least {flops_per_kimg / peak / ranks:.1f} s on {ranks} such device{'s' if ranks > 1 else ''} at its "
        f"fp32 matrix-product speed of {peak / 1e9:.0f} GFLOP/s, measured now; losses, data and memory traffic "
        "come on top"
    )


def as_table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _step_cost(
    model: VFMVAETokenizer,
    selection: Selection,
    judges: DiscriminatorCost | None,
    config: VFMVAEExperiment,
    batch: int,
) -> StepCost:
    """What a step costs; without the encoder's part where its size is unknown."""
    encoder_count = 0 if model.encoder is None else count_parameters(model.encoder)
    encoder_forward = 0 if model.encoder is None else encoder_flops(model.encoder, config, batch)
    forward, kept = trainable_flops(model, config, batch), saved_bytes(model, config, batch)
    averaged = selection.trainable + selection.frozen - encoder_count
    memory = ADAM_BYTES_PER_PARAMETER * selection.trainable + EMA_BYTES_PER_PARAMETER * averaged
    memory += FROZEN_BYTES_PER_PARAMETER * encoder_count + kept
    flops = encoder_forward + 3 * forward
    if judges is None:
        return StepCost(memory, flops, 0, 0)
    judges_memory = ADAM_BYTES_PER_PARAMETER * judges.trainable + FROZEN_BYTES_PER_PARAMETER * judges.frozen
    judges_memory += peak_activations(kept, judges, config) - kept
    judges_flops = judges.flops
    if not config.training.share_generator_forward:  # a pass of the tokenizer for them alone, on the same features
        judges_flops += forward
        levels = made_up_features(config, batch, torch.device("meta")).levels
        features = sum(level.numel() * level.element_size() for level in levels)
        judges_memory += config.training.accumulate_gradients * features  # kept from their phase to the tokenizer's
    return StepCost(memory + judges_memory, flops + judges_flops, judges_memory, judges_flops)


def rows_of_discriminators(cost: DiscriminatorCost | None) -> list[tuple[str, str]]:
    """Their line of the table, if there are any."""
    if cost is None:
        return []
    return [("discriminators", f"{shown_count(cost.trainable)} trainable, {shown_count(cost.frozen)} frozen")]


def trainable_flops(model: VFMVAETokenizer, config: VFMVAEExperiment, batch: int) -> int:
    """FLOPs of a forward pass of everything but the encoder on one micro-batch; the model is on the meta device."""
    features = made_up_features(config, batch, torch.device("meta"))
    conditioning = made_up_conditioning(model, batch, torch.device("meta"))
    return count_flops(lambda: model.decode(model.fuse(features).z, conditioning))


def saved_bytes(model: VFMVAETokenizer, config: VFMVAEExperiment, batch: int) -> int:
    """Activations in fp32 that autograd keeps of that forward pass for the backward pass, in training."""
    model.decoder.recompute_above(config.training.recompute_above_resolution)
    features = made_up_features(config, batch, torch.device("meta"))
    conditioning = made_up_conditioning(model, batch, torch.device("meta"))
    return kept_bytes(lambda: model.decode(model.fuse(features).z, conditioning))


def kept_bytes(call: Callable[[], Any]) -> int:
    """What autograd keeps while `call` runs, weights apart."""
    saved: dict[int, int] = {}
    held: list[Tensor] = []  # keeps ids unique while counting

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
            held.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(saved.values())


def discriminator_cost(config: TokenizerExperiment, batch: int, label: Tensor | None = None) -> DiscriminatorCost:
    """Parameters, FLOPs and activations of a configuration's discriminators, counted on the meta device.

    Their own phase: reconstructions and targets forward, and again with wrong labels for the matching-aware loss, then
    backward. The tokenizer's: reconstructions forward, backward to the image, and targets forward for feature matching.

    Args:
        label: what they are conditioned on, on the meta device.

    Raises: ShapeError if the batch cannot be cut into equal groups for their norms.
    """
    meta, side = torch.device("meta"), config.data.resolution
    with meta:
        judges = empty_discriminators(
            config.discriminator, config.encoder.interpolation(), 0 if label is None else label.shape[1], side
        )
    losses = config.enabled_losses()
    images = torch.empty(batch, 3, side, side, device=meta)
    trained = [p for p in judges.parameters() if p.requires_grad]

    def train_them() -> None:
        passes = 4 if "matching_aware" in losses else 2
        total([judges(images, label) for _ in range(passes)]).backward()

    def ask_them() -> None:
        with without_weight_gradients(judges):
            total([judges(images.clone().requires_grad_(), label)]).backward()
        if "feature_matching" in losses:
            with torch.no_grad():
                judges(images, label)

    def total(verdicts: list[Verdict]) -> Tensor:
        return torch.stack([logits.sum() for verdict in verdicts for logits in verdict.logits()]).sum()

    return DiscriminatorCost(
        trainable=sum(p.numel() for p in trained),
        frozen=count_parameters(judges) - sum(p.numel() for p in trained),
        flops=count_flops(train_them) + count_flops(ask_them),
        kept_own=kept_bytes(train_them),
        kept_generator=kept_bytes(ask_them),
    )


def peak_activations(kept: float, judges: DiscriminatorCost, config: VFMVAEExperiment) -> float:
    """The most that autograd keeps at once in a step, in bytes; `kept` is the tokenizer's part."""
    own_phase = judges.kept_own + (kept if config.training.share_generator_forward else 0)
    return max(own_phase, kept + judges.kept_generator)


def made_up_features(config: TokenizerExperiment, batch: int, device: torch.device) -> Features:
    """Random features of the shapes that the configured encoder gives."""
    c = config.encoder
    sides = c.token_sides(config.data.resolution)
    levels = [torch.randn(batch, side**2, width, device=device) for side, width in zip(sides, c.patch_in_dimensions)]
    return Features(levels, [(side, side) for side in sides])


def made_up_conditioning(model: VFMVAETokenizer, batch: int, device: torch.device) -> Conditioning | None:
    """Random labels of the shapes that the decoder takes; None for an unconditional one."""
    c = model.config.decoder
    if c.reads_classes:
        return Conditioning(torch.randn(batch, c.label_dim, device=device))
    if not c.reads_texts:
        return None
    width = text_width(model.encoder)
    tokens = torch.randn(batch, MAX_TOKENS, width, device=device)
    mask = torch.ones(batch, MAX_TOKENS, dtype=torch.bool, device=device)
    return Conditioning(torch.randn(batch, width, device=device), tokens, mask)


def made_up_label(model: VFMVAETokenizer, batch: int) -> Tensor | None:
    """What the discriminators are conditioned on, on the meta device; None for an unconditional decoder."""
    conditioning = made_up_conditioning(model, batch, torch.device("meta"))
    return None if conditioning is None else conditioning.label


def encoder_flops(encoder: VisionEncoder, config: TokenizerExperiment, batch: int) -> int:
    """Forward cost of the encoder on one micro-batch."""
    side = config.data.resolution
    images = torch.empty(batch, 3, side, side, device="meta")
    return count_flops(lambda: encoder.to("meta")(images))


def count_parameters(module: nn.Module) -> int:
    """Numbers in all weights of a module."""
    return sum(p.numel() for p in module.parameters())


def shown_count(number: int) -> str:
    """A number of parameters, also in millions."""
    return f"{number:,} ({number / 1e6:.2f} M)"


def _blocks(config: VFMVAEExperiment) -> str:
    side = config.data.resolution
    pairs = zip(config.decoder.block_resolutions(side), config.decoder.block_channels(side), strict=True)
    return ", ".join(f"{r} px x {c}" for r, c in pairs)
