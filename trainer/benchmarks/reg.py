"""What is timed of REG: a velocity as sampling asks for it, and a training step with its target encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.errors import UserError
from common.random import torch_generator
from evaluation.diffusion.samplers import Entangled, REGSampler
from networks.diffusion.target_features import TargetEncoders, empty_target_encoders, load_target_encoders
from trainer.benchmarks.diffusion import MadeUpLatents, MadeUpTokens, made_up_batch, measurable, plan_of
from trainer.benchmarks.plan import Plan, Request
from trainer.systems.reg import REGSystem

if TYPE_CHECKING:
    from configs.reg import REGExperiment

LATENT_FACTOR = 16  # image pixels per side of a latent's position; made-up images are of that size


def plan(request: Request) -> Plan:
    """`forward` is one evaluation with guidance, in fp32 as samples are made; a Heun step has two."""
    left_out: dict[str, str] = {}
    config = measurable(request, REGSystem, left_out)
    targets, weights = _targets(config, left_out)
    tokens = MadeUpTokens(config.network.z_dims) if targets is None else None
    latents = MadeUpLatents(config.network.in_channels, tokens)
    system = REGSystem(config, request.device, latents, targets)
    sampler = REGSampler(system.average, config.loss.path_type, config.sample)
    class_token = torch.zeros(config.training.batch_size, config.network.z_dims[0], device=request.device)

    def forward(x: Tensor, y: Tensor) -> Entangled:
        return sampler.velocity(Entangled(x, class_token), 0.5, y, guided=config.sample.cfg_scale > 1)

    batch = made_up_batch(config, system.draws(config), **_targets_of_batch(config, with_images=targets is not None))
    return plan_of(system, forward, batch, left_out, weights)


def _targets(config: REGExperiment, left_out: dict[str, str]) -> tuple[TargetEncoders | None, str]:
    """The target encoders, or None where tokens stand for what they give; and where their weights come from."""
    if config.data.features_path is not None:
        return None, "none"
    names, side = config.target.vfm_names, config.network.tokens_per_side()
    try:
        return load_target_encoders(names, side), "pretrained"
    except UserError:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            targets = empty_target_encoders(names, side)
    if targets is None:
        left_out["target encoders"] = "files are out of reach and sizes unknown; their tokens are made up"
        return None, "unknown"
    left_out["weights of the target encoders"] = "out of reach; random ones cost the same"
    return targets, "random"


def _targets_of_batch(config: REGExperiment, with_images: bool) -> dict[str, Any]:
    """Images for the target encoders, or tokens that stand for what they make of them."""
    count, c = config.training.batch_size, config.network
    generator = torch_generator(0, "benchmark targets")
    if with_images:
        shape = (count, 3, LATENT_FACTOR * c.input_size, LATENT_FACTOR * c.input_size)
        return {"images": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}
    tokens = 1 + c.tokens_per_side() ** 2
    return {"tokens": [torch.randn(count, tokens, width, generator=generator) for width in c.z_dims]}
