"""`--dry-run`: what a configuration builds and what a step costs, without weights, data or computation.

Networks are built on the meta device, so this works for any size on any machine, also where the encoder's files are
out of reach; what only these files tell is then `unknown`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from common.distributed import pick_device
from evaluation.cost import count_flops, gemm_flops_per_second
from networks.conditioning import text_width
from networks.encoders.base import VisionEncoder
from networks.encoders.loading import empty_encoder
from networks.encoders.text import MAX_TOKENS
from networks.interfaces import Conditioning, Features
from networks.vfm_vae import VFMVAETokenizer
from trainer.freeze import select_trainable

if TYPE_CHECKING:
    from configs.schema import VFMVAEExperiment

ADAM_BYTES_PER_PARAMETER = 4 * 4  # weight, gradient and two moments in fp32
EMA_BYTES_PER_PARAMETER = 4


def describe(config: VFMVAEExperiment, ranks: int) -> str:
    """Shapes, parameters, and estimates of memory and time per kimg, as a text."""
    with torch.device("meta"):
        encoder = empty_encoder(config.encoder, config.decoder.reads_texts)
        model = VFMVAETokenizer(config.tokenizer(), encoder)
    selection = select_trainable(model, config.training)
    encoder_count = None if encoder is None else sum(p.numel() for p in encoder.parameters())
    micro_batch = config.training.batch_size // (ranks * config.training.accumulate_gradients)
    flops = trainable_flops(model, config, micro_batch)
    encoder_cost = None if encoder is None else encoder_flops(encoder, config, micro_batch)
    side, latent = config.data.resolution, config.tokenizer().latent_side()
    rest_frozen = selection.frozen - (encoder_count or 0)
    memory = ADAM_BYTES_PER_PARAMETER * selection.trainable + EMA_BYTES_PER_PARAMETER * (
        selection.trainable + rest_frozen
    )
    memory += saved_bytes(model, config, micro_batch) + 4 * (encoder_count or 0)
    flops_per_kimg = (3 * flops + (encoder_cost or 0)) / micro_batch * 1000
    peak = gemm_flops_per_second(pick_device(config.run.device))
    at_least = "" if encoder_cost is not None else " (without the encoder, whose size is unknown)"
    c = config
    rows = [
        ("images", f"{side} x {side}, micro-batches of {micro_batch} on {ranks} rank{'s' if ranks > 1 else ''}"),
        ("encoder", f"{c.encoder.resolved_family()}, layers {c.encoder.patch_from_layers}"),
        ("latent", f"{latent} x {latent} x {c.latent.channels()} ({c.latent.compression_mode})"),
        ("decoder blocks", _blocks(config)),
        ("train mode", c.training.train_mode),
        ("trainable parameters", _count(selection.trainable)),
        ("frozen encoder", "unknown" if encoder_count is None else _count(encoder_count)),
        ("frozen otherwise", _count(rest_frozen)),
        *[(f"  {name}", _count(_parameters(part))) for name, part in model.trainable_parts().items()],
        (
            "memory per rank",
            f"about {memory / 1e9:.2f} GB in fp32: weights, gradients, Adam, EMA, activations{at_least}",
        ),
        (
            "FLOPs per kimg",
            f"{flops_per_kimg / 1e12:.1f} TFLOP: encoder forward, the rest forward and backward{at_least}",
        ),
        (
            "time per kimg",
            f"at least {flops_per_kimg / peak / ranks:.1f} s on {ranks} such device{'s' if ranks > 1 else ''} at its "
            f"fp32 matrix-product speed of {peak / 1e9:.0f} GFLOP/s, measured now; losses, data and memory traffic "
            "come on top",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def trainable_flops(model: VFMVAETokenizer, config: VFMVAEExperiment, batch: int) -> int:
    """FLOPs of a forward pass of everything but the encoder on one micro-batch; the model is on the meta device."""
    features = made_up_features(config, batch, torch.device("meta"))
    conditioning = made_up_conditioning(model, batch, torch.device("meta"))
    return count_flops(lambda: model.decode(model.fuse(features).z, conditioning))


def saved_bytes(model: VFMVAETokenizer, config: VFMVAEExperiment, batch: int) -> int:
    """Activations in fp32 that autograd keeps of that forward pass for the backward pass."""
    saved: dict[int, int] = {}
    held: list[Tensor] = []  # keeps ids unique while counting

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
            held.append(tensor)
        return tensor

    features = made_up_features(config, batch, torch.device("meta"))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model.decode(model.fuse(features).z, made_up_conditioning(model, batch, torch.device("meta")))
    return sum(saved.values())


def made_up_features(config: VFMVAEExperiment, batch: int, device: torch.device) -> Features:
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


def encoder_flops(encoder: VisionEncoder, config: VFMVAEExperiment, batch: int) -> int:
    """Forward cost of the encoder on one micro-batch."""
    side = config.data.resolution
    images = torch.empty(batch, 3, side, side, device="meta")
    return count_flops(lambda: encoder.to("meta")(images))


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _count(number: int) -> str:
    return f"{number:,} ({number / 1e6:.2f} M)"


def _blocks(config: VFMVAEExperiment) -> str:
    side = config.data.resolution
    pairs = zip(config.decoder.block_resolutions(side), config.decoder.block_channels(side), strict=True)
    return ", ".join(f"{r} px x {c}" for r, c in pairs)
