"""What is timed of LightningDiT: a velocity as sampling asks for it, and a training step."""

from __future__ import annotations

from evaluation.diffusion.samplers import LightningDiTSampler
from trainer.benchmarks.diffusion import MadeUpLatents, made_up_batch, measurable, plan_of
from trainer.benchmarks.plan import Plan, Request
from trainer.systems.lightningdit import LightningDiTSystem


def plan(request: Request) -> Plan:
    """`forward` is one evaluation at a time when guidance acts, in fp32 as samples are made."""
    left_out: dict[str, str] = {}
    config = measurable(request, LightningDiTSystem, left_out)
    system = LightningDiTSystem(config, request.device, MadeUpLatents(config.network.in_channels))
    sampler = LightningDiTSampler(system.average, config.transport, config.sample)
    time = min(0.5, sampler.guidance.high)
    batch = made_up_batch(config, system.draws(config))
    return plan_of(system, lambda x, y: sampler.guided(x, time, y), batch, left_out)
