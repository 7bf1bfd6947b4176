"""What the parts of a configuration cost on this machine: its networks, one training step, the pipelines around them.

    configuration -> what its system has timed (`trainer/benchmarks/`) -> parts, in turns with matrix products -> report

The unit that carries over between machines of one kind is cost = seconds x speed of an fp32 matrix product measured in
the same process, in GFLOP-equivalents: what the machine could have computed in that time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from common.checkpoint_folder import library_versions
from common.registry import import_object
from evaluation.bar_chart import Bar, bar_chart_file
from evaluation.cost import (
    MatrixProduct,
    count_flops,
    gemm_flops_per_second,
    peak_memory_gb,
    reset_peak_memory,
    seconds_of,
)
from trainer.benchmarks import BENCHMARKS
from trainer.benchmarks.plan import Call, Plan, Request
from trainer.launch import set_up_numerics

if TYPE_CHECKING:
    from configs.experiment import Experiment

GEMM_RUNS = 5
GEMM_SIDE = 4096
SLOWEST_GEMM = 3.0  # seconds; the matrices are halved until one product is expected to take less


@dataclass(frozen=True)
class Part:
    """Cost of one part on one batch.

    Attributes:
        seconds: median of the runs.
        runs: each run's seconds.
        gflop: 10^9 multiplications and additions of matrix products, convolutions and attention.
        gemm_share: speed of these over the speed of an fp32 matrix product; above 1 is possible in bf16.
        cost: GFLOP-equivalents, seconds x speed of the matrix product.
        peak_memory_gb: 10^9 bytes, of the whole process on the CPU, allocated on CUDA.
    """

    seconds: float
    runs: list[float]
    gflop: float
    gemm_share: float
    cost: float
    peak_memory_gb: float


@dataclass(frozen=True)
class Throughput:
    """How fast a pipeline goes: the best of some runs, and each of them."""

    images_per_second: float
    runs: list[float]


@dataclass(frozen=True)
class Figure:
    """A number that follows from the fastest runs of parts or pipelines."""

    value: float
    unit: str
    meaning: str


@dataclass(frozen=True)
class Gemm:
    """The yardstick: the fastest of some fp32 products of two side x side matrices."""

    side: int
    runs: int
    gflop_per_second: float


@dataclass(frozen=True)
class Measurements:
    """All parts of a configuration.

    Attributes:
        gemm: the yardstick.
        parts: by name; None where there is no such part here.
        absent: in a word, why there is none, by name: `none`, `unknown`, `left out`.
        pipelines: by name; empty unless they were asked for.
        figures: what to read off, by name.
        left_out: what was not measured, by name, with the reason.
        encoder_weights: of the frozen encoders: `pretrained`, `random`, `unknown` where features were made up, or
            `none` where there are none.
        setting: batch size and what else the numbers depend on.
    """

    gemm: Gemm
    parts: dict[str, Part | None]
    absent: dict[str, str]
    pipelines: dict[str, Throughput]
    figures: dict[str, Figure]
    left_out: dict[str, str]
    encoder_weights: str
    setting: dict[str, Any]


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(
    config: Experiment,
    device: torch.device,
    batch_size: int | None = None,
    repeats: int = 3,
    gemm_side: int | None = None,
    pipelines: bool = False,
) -> Measurements:
    """Time all parts of a configuration, in turns with the matrix product, after one run of each that counts FLOPs.

    Args:
        batch_size: images per step; None: a micro-batch of the configuration on one rank.
        repeats: timed runs of each part.
        gemm_side: side of the matrices; None: 4096, less on a slow machine.
        pipelines: also measure those around the networks, which takes longer.

    Raises: UserError if the batch cannot fit into memory.
    """
    set_up_numerics(config.training)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        request = Request(config, device, batch_size, Path(folder), pipelines)
        plan: Plan = import_object(BENCHMARKS[config.system])(request)
        calls = {name: call for name, call in plan.parts.items() if isinstance(call, Call)}
        gemm, parts = _time(calls, device, repeats, gemm_side)
        throughputs = _time_pipelines(plan.pipelines, repeats)
    fastest = {name: min(part.runs) for name, part in parts.items()}
    fastest |= {name: throughput.images_per_second for name, throughput in throughputs.items()}
    return Measurements(
        gemm=gemm,
        parts={name: parts.get(name) for name in plan.parts},
        absent={name: why for name, why in plan.parts.items() if isinstance(why, str)},
        pipelines=throughputs,
        figures={
            name: Figure(figure.value(fastest), figure.unit, figure.meaning) for name, figure in plan.figures.items()
        },
        left_out=plan.left_out,
        encoder_weights=plan.encoder_weights,
        setting={**plan.setting, "repeats": repeats},
    )


def _time(
    calls: Mapping[str, Call], device: torch.device, repeats: int, gemm_side: int | None
) -> tuple[Gemm, dict[str, Part]]:
    """The yardstick, and the cost of each call."""
    flops, peaks = {}, {}
    for name, call in calls.items():  # before there are matrices, which would count as memory
        reset_peak_memory(device)
        flops[name] = call.times * count_flops(call.run)
        if call.is_compiled:
            call.run()
        peaks[name] = peak_memory_gb(device)

    product = MatrixProduct(gemm_side or _gemm_side(device), device)
    product.seconds()
    gemm_runs: list[float] = []
    runs: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        gemm_runs.append(product.seconds())
        for name, call in calls.items():
            runs[name].append(call.times * seconds_of(call.run, device))
    while len(gemm_runs) < GEMM_RUNS:
        gemm_runs.append(product.seconds())
    gemm = Gemm(product.side, len(gemm_runs), product.flops / min(gemm_runs) / 1e9)
    return gemm, {name: _part(runs[name], flops[name], peaks[name], gemm) for name in calls}


def _time_pipelines(pipelines: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Throughput]:
    """Each measures its own images per second, in turns with the others."""
    runs: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(repeats):
        for name, pipeline in pipelines.items():
            runs[name].append(pipeline())
    return {name: Throughput(max(rates), rates) for name, rates in runs.items()}


def _part(runs: list[float], flops: float, peak_memory: float, gemm: Gemm) -> Part:
    seconds = median(runs)
    return Part(
        seconds=seconds,
        runs=runs,
        gflop=flops / 1e9,
        gemm_share=flops / 1e9 / seconds / gemm.gflop_per_second,
        cost=seconds * gemm.gflop_per_second,
        peak_memory_gb=peak_memory,
    )


def _gemm_side(device: torch.device) -> int:
    side, speed = GEMM_SIDE, gemm_flops_per_second(device)
    while 2 * side**3 / speed > SLOWEST_GEMM:
        side //= 2
    return side


# --- reporting -------------------------------------------------------------------------------------------------------


def as_record(measurements: Measurements, config: Experiment, device: torch.device) -> dict[str, Any]:
    """Measurements with what they belong to, as JSON values."""
    settings = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return {
        "system": config.system,
        "config_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "machine": {
            "device": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version(), **library_versions()},
        **asdict(measurements),
    }


def as_table(record: Mapping[str, Any]) -> str:
    """A record of `as_record` for people."""
    machine, setting, gemm = record["machine"], record["setting"], record["gemm"]
    width = max(13, *(len(name) for name in [*record["parts"], *record["pipelines"], *record["figures"]]))
    lines = [
        f"{machine['device']}: {machine['name']}, {_threads(machine)}",
        _about(record),
        f"fp32 matrix product of side {gemm['side']}: {gemm['gflop_per_second']:.0f} GFLOP/s, "
        f"best of {gemm['runs']} in turns with the parts",
        "",
        f"{'part':<{width}} {'seconds':>10} {'GFLOP':>10} {'of GEMM':>8} {'cost':>10} {'peak GB':>8}",
    ]
    for name, part in record["parts"].items():
        if part is None:
            lines.append(f"{name:<{width}} {record['absent'][name]:>10}")
            continue
        lines.append(
            f"{name:<{width}} {part['seconds']:>10.4f} {part['gflop']:>10.2f} {part['gemm_share']:>8.0%} "
            f"{part['cost']:>10.1f} {part['peak_memory_gb']:>8.2f}"
        )
    if record["pipelines"]:
        lines += ["", f"{'pipeline':<{width}} {'images/s':>10}"]
        lines += [f"{name:<{width}} {t['images_per_second']:>10.1f}" for name, t in record["pipelines"].items()]
    if record["figures"]:
        lines += ["", "Of the fastest runs:"]
        lines += [
            f"{name:<{width}} {f['value']:>10.4g} {f['unit']}  ({f['meaning']})"
            for name, f in record["figures"].items()
        ]
    lines.append("")
    if "losses" in setting:
        phases = " and ".join(setting["phases"]) or "none"
        lines.append(f"The step's losses: {', '.join(setting['losses']) or 'none'}; its phases: {phases}.")
    lines += ["Left out:", *(f"  {name}: {reason}" for name, reason in record["left_out"].items())]
    return "\n".join(lines)


def as_plot(record: Mapping[str, Any]) -> str:
    """The seconds of all parts as bars, in each how long its matrix products alone would take, as an SVG file."""
    speed = record["gemm"]["gflop_per_second"]
    bars = [
        Bar(name, part["seconds"], part["gflop"] / speed, f"{part['seconds']:.3g} s, {part['gemm_share']:.0%}")
        for name, part in record["parts"].items()
        if part is not None
    ]
    machine = record["machine"]
    return bar_chart_file(
        bars,
        title=f"{record['system']}: {record['setting']['inputs']}",
        notes=[
            f"{machine['name']}, {_threads(machine)}, {record['setting']['precision']}",
            f"dark: at the speed of an fp32 matrix product, {speed:.0f} GFLOP/s",
        ],
        x_label="seconds",
    )


def _threads(machine: Mapping[str, Any]) -> str:
    return f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"


def _about(record: Mapping[str, Any]) -> str:
    setting = record["setting"]
    layout = ""
    if "channels_last" in setting:
        layout = ", channels-last" if setting["channels_last"] else ", channels-first"
    encoder = "" if record["encoder_weights"] == "none" else f"; encoder weights: {record['encoder_weights']}"
    return f"{setting['inputs']}, {setting['precision']}{layout}{encoder}"


def _processor() -> str:
    """The processor's model name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
