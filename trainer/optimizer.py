"""Optimisers: built from their configuration, saved and restored as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.errors import CheckpointError
from trainer.config import AdamConfig


def build_adam(parameters: Mapping[str, nn.Parameter], config: AdamConfig, fused: bool) -> torch.optim.Optimizer:
    """Adam over named parameters; AdamW if the configuration has weight decay."""
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    groups: list[dict] = [{"params": list(parameters.values())}]
    if config.weight_decay and not config.decay_vectors:
        matrices = [p for p in parameters.values() if p.ndim >= 2]
        vectors = [p for p in parameters.values() if p.ndim < 2]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return kind(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=fused or None,
    )


def learning_rate(config: AdamConfig, nimg: int, total_nimg: int, batch_size: int) -> float:
    """The rate of a step: linear warm-up, then constant or half a cosine down to 0 at `total_nimg`.

    With `warmup_init_lr` and T steps of warm-up it is init + (s + 1) (lr - init) / T at step s = 0 .. T - 1.

    Args:
        nimg: images seen before the step.
        batch_size: images of the step.
    """
    warmup, start = 1000 * config.warmup_kimg, config.warmup_init_lr
    if start is not None and nimg + batch_size < warmup:
        return start + (config.lr - start) * (nimg + batch_size) / warmup
    if start is None and nimg < warmup:
        return config.lr * (nimg + 1) / (warmup + 1)
    if not config.cosine_decay:
        return config.lr
    share = min(max(nimg - warmup, 0) / max(total_nimg - warmup, 1), 1.0)
    return config.lr * 0.5 * (1 + math.cos(math.pi * share))


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state as `<parameter>|<key>` -> tensor."""
    return {
        f"{name}|{key}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` gave. Raises CheckpointError if it belongs to other parameters."""
    unknown = {key.split("|")[0] for key in tensors} - set(parameters)
    if unknown:
        raise CheckpointError(f"the optimiser state holds {sorted(unknown)[0]!r}, which is not trained in this run.")
    optimizer.state.clear()
    for key, value in tensors.items():
        name, entry = key.split("|")
        parameter = parameters[name]
        if value.shape == parameter.shape:
            restored = torch.empty_like(parameter).copy_(value)  # with the parameter's device and memory layout
        else:  # the step counter lives on the CPU, unless the optimiser is fused
            restored = value.clone().to(parameter.device if optimizer.param_groups[0].get("fused") else "cpu")
        optimizer.state[parameter][entry] = restored
