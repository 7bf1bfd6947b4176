"""What a computation costs: floating-point operations, seconds, memory; and the machine's speed to compare with."""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def count_flops(call: Callable[[], Any]) -> int:
    """Multiplications and additions of matrix products, convolutions and attention while `call` runs.

    Works on the meta device. What is compiled runs uncompiled, for a compiled program hides its operations. It is
    PyTorch's counter with three corrections: attention and oneDNN's linear layer have kernels of their own on the CPU,
    which PyTorch leaves out, and in the backward pass of a grouped convolution PyTorch forgets the groups.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_CORRECTIONS)
    counter.mod_tracker = _OneSum()
    with torch.compiler.set_stance("force_eager"), counter:
        call()
    return counter.get_total_flops()


class _OneSum:
    """In place of PyTorch's attribution to modules, whose hooks refuse `torch.autograd.grad` at a module's input."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass


def _convolution_backward_flops(
    output_gradient: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **other: Any,
) -> int:
    """As many as the forward pass for each of the gradients of input and weight. Arguments are shapes."""
    positions = x if transposed else output_gradient
    forward = 2 * positions[0] * math.prod(positions[2:]) * math.prod(weight)
    return forward * (bool(wanted[0]) + bool(wanted[1]))


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *other: Any, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    output_gradient: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *other: Any,
    **named: Any,
) -> int:
    return sdpa_backward_flop_count(output_gradient, query, key, value)


def _linear_flops(x: Sequence[int], weight: Sequence[int], *other: Any, **named: Any) -> int:
    return 2 * math.prod(x) * weight[0]


_ATEN = torch.ops.aten
_CORRECTIONS = {
    _ATEN.convolution_backward: _convolution_backward_flops,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
if torch.backends.mkldnn.is_available():
    _CORRECTIONS[torch.ops.mkldnn._linear_pointwise] = _linear_flops


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, including what it leaves to the GPU."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


class MatrixProduct:
    """The yardstick of all speeds: an fp32 product of two square matrices.

    Args:
        side: of the matrices.
        device: where they lie.
    """

    def __init__(self, side: int, device: torch.device):
        self.side = side
        self.flops = 2 * side**3
        self.device = device
        self._a, self._b = (torch.randn(side, side, device=device) for _ in range(2))
        self._out = torch.empty(side, side, device=device)

    def seconds(self) -> float:
        """Wall time of one product."""
        return seconds_of(lambda: torch.mm(self._a, self._b, out=self._out), self.device)


def gemm_flops_per_second(device: torch.device, side: int = 1024, seconds: float = 0.3) -> float:
    """Best speed of an fp32 matrix product within about `seconds`: enough for an estimate."""
    product = MatrixProduct(side, device)
    best, until = float("inf"), time.monotonic() + seconds
    while time.monotonic() < until:
        best = min(best, product.seconds())
    return product.flops / best


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_gb` count from now on; on systems other than Linux the CPU's peak stays the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in GB (10^9 bytes): allocated on the GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    recorded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return max(recorded, resident_memory_gb())  # Linux's record of the peak may lag behind by some pages


def resident_memory_gb() -> float:
    """Memory of this process now, in GB (10^9 bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
