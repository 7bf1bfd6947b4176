"""What the parts of a tokenizer cost on this machine: encoder, adapter, decoder, discriminators, one training step.

    configuration -> what can be measured here -> parts, timed in turns with fp32 matrix products -> report

The unit that carries over between machines of one kind is cost = seconds x speed of an fp32 matrix product measured in
the same process, in GFLOP-equivalents: what the machine could have computed in that time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from common.checkpoint_folder import library_versions
from common.errors import CheckpointError, UserError
from common.random import torch_generator
from common.registry import import_object
from data.pipeline import Batch
from data.skips import SkipCounter
from evaluation.cost import (
    MatrixProduct,
    count_flops,
    gemm_flops_per_second,
    peak_memory_gb,
    reset_peak_memory,
    seconds_of,
)
from losses import LOSSES
from losses.config import PatchGANTermConfig, StyleGANTTermConfig
from networks.config import DiscriminatorConfig
from networks.discriminators.backbone import TappedViT
from networks.discriminators.loading import bare_backbone, load_backbone
from networks.encoders.loading import empty_encoder, load_encoder
from networks.interfaces import Features
from networks.vfm_vae import VFMVAETokenizer
from trainer.dry_run import (
    discriminator_cost,
    made_up_conditioning,
    made_up_features,
    made_up_label,
    peak_activations,
    saved_bytes,
)
from trainer.launch import set_up_numerics
from trainer.systems import adversarial
from trainer.systems.vfm_vae import VFMVAESystem
from trainer.trainer import Trainer

if TYPE_CHECKING:
    from configs.vfm_vae import VFMVAEExperiment

GEMM_RUNS = 5
GEMM_SIDE = 4096
ABSENT = {"discriminator": "none", "step": "left out"}  # what a table says of a part that is not there
SLOWEST_GEMM = 3.0  # seconds; the matrices are halved until one product is expected to take less
PARTS = ("encoder", "adapter", "encode", "decode", "discriminator", "step")


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
        parts: by name; None where the part's size is unknown, or there is no such part.
        left_out: what the training step lacks, by name, with the reason.
        encoder_weights: `pretrained`, `random`, or `unknown` where features were made up.
        setting: resolution, batch size and what else the numbers depend on.
    """

    gemm: Gemm
    parts: dict[str, Part | None]
    left_out: dict[str, str]
    encoder_weights: str
    setting: dict[str, Any]


# --- what can be measured --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurable:
    """The part of a configuration that can be measured here, and what had to go, by name, with the reason."""

    config: VFMVAEExperiment
    left_out: dict[str, str]


def measurable(config: VFMVAEExperiment, batch_size: int | None) -> Measurable:
    """Leave out of the training step what is not built, lacks its files, or would make its cost a matter of chance.

    Args:
        batch_size: images per step; None: a micro-batch of the configuration on one rank.
    """
    left_out = {"data": "reading and augmentation; the images are made up"}
    losses = {}
    for name, term in config.enabled_losses().items():
        try:
            import_object(LOSSES[name].target)(term)
            losses[name] = _without_warmup(term)
        except UserError as error:
            left_out[f"losses.{name}"] = str(error)
    training = config.training
    if config.decoder.reads_texts:
        left_out["text model"] = "class texts are embedded once in a run; the embeddings are made up"
    if any(term != config.enabled_losses()[name] for name, term in losses.items()):
        left_out["warm-up"] = "every step runs as after it, with all discriminators"
    if config.equivariance.use_equivariance_regularization:
        left_out["equivariance"] = "every step runs at full size; a step with a smaller scale costs less"
    if training.precision == "fp16":
        left_out["fp16"] = "runs in fp32 here"
    images = batch_size or training.batch_size // training.accumulate_gradients
    training = training.model_copy(
        update={
            "batch_size": images,
            "accumulate_gradients": 1,
            "precision": "fp32" if training.precision == "fp16" else training.precision,
        }
    )
    sections = {
        "training": training,
        "losses": type(config.losses)(**losses),
        "equivariance": type(config.equivariance)(use_equivariance_regularization=False),
        "validation": None,
    }
    return Measurable(config.model_copy(update=sections), left_out)


def _without_warmup(term: Any) -> Any:
    """The configuration of a term that counts from the first step on."""
    if isinstance(term, (StyleGANTTermConfig, PatchGANTermConfig)):
        return term.model_copy(update={"use_disc_warmup": False})
    return term


class FixedFeatures(nn.Module):
    """Stands for an encoder whose size is unknown: the same features for any images."""

    def __init__(self, features: Features):
        super().__init__()
        self.features = features
        self.text_encoder = None

    def forward(self, images: Tensor, input_scale: float = 1.0) -> Features:
        return self.features


def _encoder(config: VFMVAEExperiment, device: torch.device) -> tuple[nn.Module, str]:
    """The frozen encoder, or what stands for it, and where its weights come from."""
    try:
        return load_encoder(config.encoder, config.decoder.reads_texts), "pretrained"
    except UserError:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = empty_encoder(config.encoder, config.decoder.reads_texts)
    if encoder is not None:
        return encoder, "random"
    return FixedFeatures(made_up_features(config, config.training.batch_size, device)), "unknown"


def _backbone(config: DiscriminatorConfig) -> tuple[TappedViT | None, bool]:
    """The discriminators' frozen network, if they have any, and whether its weights are random in place of its own.

    Raises: CheckpointError if the file that it names is damaged, or another network's.
    """
    if not config.use_stylegan_t_discriminator:
        return None, False
    try:
        return load_backbone(config), False
    except CheckpointError:
        raise
    except UserError:  # its file is not here
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return bare_backbone(config), True


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(
    config: VFMVAEExperiment,
    device: torch.device,
    batch_size: int | None = None,
    repeats: int = 3,
    gemm_side: int | None = None,
) -> Measurements:
    """Time all parts of a configuration, in turns with the matrix product, after one run of each that counts FLOPs.

    Args:
        batch_size: images per step; None: a micro-batch of the configuration on one rank.
        repeats: timed runs of each part.
        gemm_side: side of the matrices; None: 4096, less on a slow machine.

    Raises: UserError if the batch cannot fit into memory.
    """
    what = measurable(config, batch_size)
    config, left_out = what.config, dict(what.left_out)
    _check_memory(config, device)
    set_up_numerics(config.training)
    encoder, encoder_weights = _encoder(config, device)
    if encoder_weights == "unknown":
        left_out["encoder"] = "its files are out of reach and its size is unknown; its features are made up"
    elif encoder_weights == "random":
        left_out["encoder weights"] = "out of reach; random ones cost the same"
    backbone, is_random = _backbone(config.discriminator)
    if is_random:
        left_out["discriminator weights"] = "out of reach; random ones cost the same"
    system = VFMVAESystem(config, device, encoder, backbone)
    calls = _calls(config, system, device, with_encoder=encoder_weights != "unknown")
    if "step" not in calls:
        left_out["step"] = "none of its losses can be computed here"

    gemm, parts = _time(calls, device, repeats, gemm_side)
    return Measurements(
        gemm=gemm,
        parts={name: parts.get(name) for name in PARTS},
        left_out=left_out,
        encoder_weights=encoder_weights,
        setting={
            "resolution": config.data.resolution,
            "batch_size": config.training.batch_size,
            "precision": config.training.precision,
            "channels_last": config.training.channels_last,
            "train_mode": config.training.train_mode,
            "losses": list(config.enabled_losses()),
            "phases": [phase.name for phase in system.phases if system.takes_part(phase, 0)] if "step" in calls else [],
            "repeats": repeats,
        },
    )


def _time(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, repeats: int, gemm_side: int | None
) -> tuple[Gemm, dict[str, Part]]:
    """The yardstick, and the cost of each call."""
    flops, peaks = {}, {}
    for name, call in calls.items():  # before there are matrices, which would count as memory
        reset_peak_memory(device)
        flops[name] = count_flops(call)
        peaks[name] = peak_memory_gb(device)

    product = MatrixProduct(gemm_side or _gemm_side(device), device)
    product.seconds()
    gemm_runs: list[float] = []
    runs: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        gemm_runs.append(product.seconds())
        for name, call in calls.items():
            runs[name].append(seconds_of(call, device))
    while len(gemm_runs) < GEMM_RUNS:
        gemm_runs.append(product.seconds())
    gemm = Gemm(product.side, len(gemm_runs), product.flops / min(gemm_runs) / 1e9)
    return gemm, {name: _part(runs[name], flops[name], peaks[name], gemm) for name in calls}


def _calls(
    config: VFMVAEExperiment, system: VFMVAESystem, device: torch.device, with_encoder: bool
) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    model: VFMVAETokenizer = system.average
    generator = torch_generator(0, "benchmark", device=device)
    side, count = config.data.resolution, config.training.batch_size
    images = torch.rand(count, 3, side, side, generator=generator, device=device)
    features = model.encoder(images)
    z = torch.randn(count, *model.latent_shape(side, side), generator=generator, device=device)
    conditioning = made_up_conditioning(model, count, device)
    if config.decoder.reads_texts:
        system.embed_texts = lambda texts: conditioning

    def inference(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            bf16 = config.training.precision == "bf16"
            with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                call()

        return run

    calls: dict[str, Callable[[], Any]] = {}
    if with_encoder:
        calls["encoder"] = inference(lambda: model.encoder(images))
    calls["adapter"] = inference(lambda: model.fuse(features, generator))
    if with_encoder:
        calls["encode"] = inference(lambda: model.encode(images, generator))
    calls["decode"] = inference(lambda: model.decode(z, conditioning))
    if config.enabled_losses():
        trainer = Trainer(config, system, _NoData(), device)
        batch = _made_up_batch(count, side)
        for phase in system.phases:
            if phase.name == adversarial.PHASE and system.takes_part(phase, trainer.nimg):
                calls["discriminator"] = lambda phase=phase: trainer.train_phase(phase, [batch], {})
        calls["step"] = lambda: trainer.train_step(itertools.repeat(batch))
    return calls


class _NoData:
    """In place of the training data: it never ends, and nothing is ever bad."""

    steps = None
    skips = SkipCounter(0)


def _made_up_batch(count: int, side: int) -> Batch:
    generator = torch_generator(0, "benchmark batch")
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    return Batch(images, labels, [""] * count, [""] * count, range(count))


def _part(runs: list[float], flops: int, peak_memory: float, gemm: Gemm) -> Part:
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


def _check_memory(config: VFMVAEExperiment, device: torch.device) -> None:
    """Refuse a batch whose activations alone exceed the memory, before the machine runs out of it."""
    with torch.device("meta"):
        encoder = empty_encoder(config.encoder, with_text=True) if config.decoder.reads_texts else None
        model = VFMVAETokenizer(config.tokenizer(), encoder)
    count = config.training.batch_size
    needed = saved_bytes(model, config, count) / (2 if config.training.precision == "bf16" else 1)
    if config.discriminator.enabled:
        needed = peak_activations(needed, discriminator_cost(config, count, made_up_label(model, count)), config)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"batch size {count}: a training step keeps about {needed / 1e9:.0f} GB of activations, and there are "
            f"{memory / 1e9:.0f} GB of memory; use a smaller --batch-size."
        )


# --- reporting -------------------------------------------------------------------------------------------------------


def as_record(measurements: Measurements, config: VFMVAEExperiment, device: torch.device) -> dict[str, Any]:
    """Measurements with what they belong to, as JSON values."""
    settings = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return {
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
    layout = "channels-last" if setting["channels_last"] else "channels-first"
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    lines = [
        f"{machine['device']}: {machine['name']}, {threads}",
        f"{setting['batch_size']} images of {setting['resolution']} x {setting['resolution']}, {setting['precision']}, "
        f"{layout}; encoder weights: {record['encoder_weights']}",
        f"fp32 matrix product of side {gemm['side']}: {gemm['gflop_per_second']:.0f} GFLOP/s, "
        f"best of {gemm['runs']} in turns with the parts",
        "",
        f"{'part':<13} {'seconds':>10} {'GFLOP':>10} {'of GEMM':>8} {'cost':>10} {'peak GB':>8}",
    ]
    for name, part in record["parts"].items():
        if part is None:
            lines.append(f"{name:<13} {ABSENT.get(name, 'unknown'):>10}")
            continue
        lines.append(
            f"{name:<13} {part['seconds']:>10.4f} {part['gflop']:>10.2f} {part['gemm_share']:>8.0%} "
            f"{part['cost']:>10.1f} {part['peak_memory_gb']:>8.2f}"
        )
    phases = " and ".join(setting["phases"]) or "none"
    lines += ["", f"The step's losses: {', '.join(setting['losses']) or 'none'}; its phases: {phases}.", "Left out:"]
    lines += [f"  {name}: {reason}" for name, reason in record["left_out"].items()]
    return "\n".join(lines)


def _processor() -> str:
    """The processor's model name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
