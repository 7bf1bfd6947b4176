"""Where a computation leaves the surrounding autocast."""

from __future__ import annotations

import contextlib

import torch


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Switch autocast off for a block of code; on the meta device, which knows none, do nothing."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def frozen_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """How frozen pretrained models run: on CUDA under bf16 autocast, elsewhere in fp32."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return full_precision(device)
