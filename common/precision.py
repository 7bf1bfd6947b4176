"""Where a computation leaves the surrounding autocast, and how frozen models compute."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Switch autocast off for a block of code; on the meta device, which knows none, do nothing."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def frozen_precision(device: torch.device) -> Iterator[None]:
    """How frozen pretrained models run, without gradients.

    On CUDA under bf16 autocast. On the CPU so too if the computation around them is in bf16, else in fp32.
    """
    around_is_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if device.type == "cuda" or (device.type == "cpu" and around_is_bf16):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
    else:
        with full_precision(device), OneDNNLinear():
            yield


class OneDNNLinear(TorchFunctionMode):
    """Linear layers in fp32 on the CPU run in oneDNN instead of the BLAS library, which has no gradients.

    PyTorch brings MKL, whose fp32 matrix product takes about twice as long as oneDNN's on processors that are not
    Intel's (docs/performance.md). Convolutions and bf16 go to oneDNN anyway.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear and torch.backends.mkldnn.is_available():
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
