"""What the tokenizers' benchmarks have in common: frozen parts, made-up images, the training's phases, pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from common.errors import CheckpointError, UserError
from common.random import torch_generator
from common.registry import import_object
from data.pipeline import Batch
from evaluation.prefetch.format import PrefetchFormat
from losses import LOSSES
from losses.lpips import TRUNK_FILE, find_trunk, random_trunk
from networks.config import DiscriminatorConfig
from networks.discriminators.backbone import TappedViT
from networks.discriminators.loading import bare_backbone, load_backbone
from networks.encoders.loading import empty_encoder, load_encoder
from networks.interfaces import Features
from trainer.benchmarks.pipelines import input_pipelines, prefetch_pipelines, reconstruct_pipelines
from trainer.benchmarks.plan import Call, Plan, Request, on_one_rank, overlap, ratio, require_memory, training_calls
from trainer.dry_run import made_up_features
from trainer.systems import adversarial
from trainer.systems.tokenizer import GENERATOR, TokenizerSystem

if TYPE_CHECKING:
    from configs.tokenizer import TokenizerExperiment

SAME_COST = "out of reach; random ones cost the same"


@dataclass(frozen=True)
class Subject:
    """A tokenizer's system as it can be measured here.

    Attributes:
        config: of what is measured.
        system: networks on the device.
        encoder_weights: `pretrained`, `random`, or `unknown` where features are made up.
        left_out: what had to go, by name, with the reason.
        images: [B, 3, S, S] in [0, 1].
        features: what the frozen encoder makes of them.
        latent: a made-up one of such images, [B, c, h, w].
        generator: for draws of the parts.
    """

    config: TokenizerExperiment
    system: TokenizerSystem
    encoder_weights: str
    left_out: dict[str, str]
    images: Tensor
    features: Features
    latent: Tensor
    generator: torch.Generator

    def of_encoder(self, call: Callable[[], Any]) -> Call | str:
        """A part that runs the frozen encoder, if there is one."""
        return "unknown" if self.encoder_weights == "unknown" else self.inference(call)

    def inference(self, call: Callable[[], Any]) -> Call:
        """A part that runs without gradients, in the training's precision."""
        bf16, device = self.config.training.precision == "bf16", self.images.device.type

        def run() -> None:
            with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
                call()

        return Call(run)


def measurable(request: Request) -> tuple[TokenizerExperiment, dict[str, str]]:
    """Leave out of the training step what lacks its files, or would make its cost a matter of chance or time.

    Returns: the configuration of what can be measured, and what had to go, by name, with the reason.
    """
    config, left_out = request.config, {"data": "reading and augmentation; the images are made up"}
    training = on_one_rank(config.training, request.batch_size, left_out)
    losses = {}
    for name, term in _with_lpips(config, request.scratch, left_out).items():
        try:
            import_object(LOSSES[name].target)(term)
        except UserError as error:
            left_out[f"losses.{name}"] = str(error)
            continue
        losses[name] = term
        if getattr(term, "use_disc_warmup", False):
            losses[name] = term.model_copy(update={"use_disc_warmup": False})
            left_out["warm-up"] = "every step runs as after it, with all discriminators"
        if term.start_kimg > training.init_kimg:
            losses[name] = losses[name].model_copy(update={"start_kimg": 0.0})
            left_out[f"losses.{name}.start_kimg"] = "every step runs as after it"
    sections = {"training": training, "losses": type(config.losses)(**losses), "validation": None}
    return config.model_copy(update=sections), left_out


def _with_lpips(config: TokenizerExperiment, scratch: Path, left_out: dict[str, str]) -> dict[str, Any]:
    """The terms of a configuration by name; LPIPS on random weights where its VGG16 is not here."""
    terms = config.enabled_losses()
    try:
        if "perceptual" in terms:
            find_trunk(terms["perceptual"].vgg16_path)
    except UserError:
        path = scratch / TRUNK_FILE
        torch.save(random_trunk(), path)
        terms["perceptual"] = terms["perceptual"].model_copy(update={"vgg16_path": str(path)})
        left_out["LPIPS weights"] = SAME_COST
    return terms


def build(
    config: TokenizerExperiment, left_out: dict[str, str], system: type[TokenizerSystem], device: torch.device
) -> Subject:
    """The system of a `measurable` configuration, with what stands for files that are not here."""
    count, side = config.training.batch_size, config.data.resolution
    encoder, encoder_weights = _encoder(config, device)
    if encoder_weights == "unknown":
        left_out["encoder"] = "its files are out of reach and its size is unknown; its features are made up"
    elif encoder_weights == "random":
        left_out["encoder weights"] = SAME_COST
    backbone, is_random = _backbone(config.discriminator)
    if is_random:
        left_out["discriminator weights"] = SAME_COST
    built = system(config, device, encoder, backbone)
    generator = torch_generator(0, "benchmark", device=device)
    images = torch.rand(count, 3, side, side, generator=generator, device=device)
    latent = torch.randn(count, *built.average.latent_shape(side, side), generator=generator, device=device)
    features = built.average.encoder(images)
    return Subject(config, built, encoder_weights, left_out, images, features, latent, generator)


def require_room(config: TokenizerExperiment, device: torch.device, kept: float) -> None:
    """Raise UserError if the activations in fp32 that a step keeps exceed the memory."""
    needed = kept / (2 if config.training.precision == "bf16" else 1)
    require_memory(needed, config.training.batch_size, device)


def plan_of(
    subject: Subject, parts: dict[str, Call | str], request: Request, kind: PrefetchFormat, **more: Any
) -> Plan:
    """The plan: a tokenizer's own parts, the phases of its training, and the pipelines if they are asked for.

    Args:
        kind: what a prefetch stores of images.
        more: attributes of the plan besides; `figures` join those of the pipelines.
    """
    config, system, left_out = subject.config, subject.system, subject.left_out
    training: dict[str, Call] = {}
    if config.enabled_losses():
        training = training_calls(config, system, made_up_batch(config), subject.images.device, left_out)
    else:
        left_out["step"] = "none of its losses can be computed here"
    phases = [phase.name for phase in system.phases]
    missing = {name: "none" if name == adversarial.PHASE else "left out" for name in (adversarial.PHASE, GENERATOR)}
    order = [*(name for name in missing if name not in phases), *phases, "step"]
    parts = parts | {name: training.get(name) or missing.get(name, "left out") for name in order}
    pipelines, figures = {}, dict(more.pop("figures", {}))
    if request.pipelines:
        pipelines |= input_pipelines(request.config.data, config.training.batch_size, request.scratch)
        figures |= ratio("input", "pil", "training input over plain decoding and resizing")
        if subject.encoder_weights == "unknown":
            left_out["prefetch and reconstruct"] = "the encoder's size is unknown"
        else:
            pipelines |= prefetch_pipelines(system.average, kind, config, subject.images.device, request.scratch)
            figures |= overlap("prefetch")
            if config.tokenizer().conditional:
                left_out["reconstruct"] = "reads no labels"
            else:
                pipelines |= reconstruct_pipelines(system.average, config, subject.images.device, request.scratch)
                figures |= overlap("reconstruct")
    side, count = config.data.resolution, config.training.batch_size
    setting = {
        "inputs": f"{count} image{'s' if count > 1 else ''} of {side} x {side}",
        "resolution": side,
        "batch_size": count,
        "precision": config.training.precision,
        "channels_last": config.training.channels_last,
        "train_mode": system.mode_of_training(),
        "losses": list(config.enabled_losses()),
        "phases": [name for name in phases if name in training],
    }
    return Plan(
        parts, setting, left_out, encoder_weights=subject.encoder_weights, figures=figures, pipelines=pipelines, **more
    )


def made_up_batch(config: TokenizerExperiment) -> Batch:
    """A micro-batch of random images."""
    count, side = config.training.batch_size, config.data.resolution
    generator = torch_generator(0, "benchmark batch")
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    return Batch(images, labels, [""] * count, [""] * count, range(count))


class FixedFeatures(nn.Module):
    """Stands for an encoder whose size is unknown: the same features for any images."""

    def __init__(self, features: Features):
        super().__init__()
        self.features = features
        self.text_encoder = None

    def forward(self, images: Tensor, input_scale: float = 1.0) -> Features:
        return self.features


def _encoder(config: TokenizerExperiment, device: torch.device) -> tuple[nn.Module, str]:
    """The frozen encoder, or what stands for it, and where its weights come from."""
    with_text = config.tokenizer().reads_texts
    try:
        return load_encoder(config.encoder, with_text), "pretrained"
    except UserError:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = empty_encoder(config.encoder, with_text)
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
