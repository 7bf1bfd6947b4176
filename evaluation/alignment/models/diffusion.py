"""Features of the blocks of a diffusion model, read by forward hooks: which layer knows what, at which noise.

names + latents -> x_t = (1 - t) x + t eps, eps keyed by (seed, name) -> model -> mean over tokens of every block

A family of models says in a `DiffusionAdapter` how it is called; everything else is here. No family is part of this
module.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.random import torch_generator
from common.registry import closest


@dataclass(frozen=True)
class CleanLatents:
    """What is diffused.

    Args:
        latents: normalised as in training, [B, C, h, w].
        names: one per image.
        labels: class indices, int64 [B]; the null class where features are not to depend on labels.
        class_tokens: [B, D], for families that diffuse a class token along (REG); else None.
    """

    latents: Tensor
    names: Sequence[str]
    labels: Tensor
    class_tokens: Tensor | None = None


@dataclass(frozen=True)
class NoisyInput:
    """What a model sees.

    Args:
        latents: x_t, [B, C, h, w].
        time: in the model's own convention, [B].
        labels: int64 [B].
        class_tokens: noisy by the same rule as the latents, [B, D]; or None.
    """

    latents: Tensor
    time: Tensor
    labels: Tensor
    class_tokens: Tensor | None


class DiffusionAdapter(ABC):
    """How a family of diffusion models is called and read.

    Args:
        model: in eval mode.
        blocks: feature name -> name of the module whose output is read (`embedder`, `block_0`, ..., `final_layer`).

    Attributes of a family:
        time_is_noise: the model takes t, the share of noise (REPA, REG); else 1 - t (LightningDiT, SiT).
    """

    time_is_noise: bool

    def __init__(self, model: nn.Module, blocks: Mapping[str, str]):
        modules = dict(model.named_modules())
        for feature, name in blocks.items():
            if name not in modules:
                raise UserError(
                    f"{feature}: the model has no module {name!r}. Closest: {closest(name, filter(None, modules))}."
                )
        self.model, self.blocks = model, dict(blocks)

    @abstractmethod
    def run(self, noisy: NoisyInput) -> None:
        """Call the model once; what it returns is not looked at."""

    def tokens(self, feature: str, output: Tensor) -> Tensor:
        """The tokens [B, N, D] to average, from a module's output; a family may leave out its class token here."""
        return output


def add_diffusion_noise(clean: CleanLatents, t: float, seed: int, time_is_noise: bool) -> NoisyInput:
    """x_t = (1 - t) x + t eps for latents and class tokens; an image's noise is the same at every t.

    Args:
        t: share of noise, 0 to 1.
    """

    def diffused(x: Tensor, purpose: str) -> Tensor:
        noise = [torch.randn(x.shape[1:], generator=torch_generator(seed, purpose, name)) for name in clean.names]
        return (1 - t) * x + t * torch.stack(noise).to(x)

    tokens = None if clean.class_tokens is None else diffused(clean.class_tokens, "alignment class token")
    time = torch.full((len(clean.names),), t if time_is_noise else 1 - t, device=clean.latents.device)
    return NoisyInput(diffused(clean.latents, "alignment latent"), time, clean.labels, tokens)


@torch.inference_mode()
def block_features(adapter: DiffusionAdapter, clean: CleanLatents, t: float, seed: int) -> dict[str, Tensor]:
    """Features of every block for latents with noise: {feature: float32 [B, D]}, in the order of `adapter.blocks`.

    Raises: UserError if a module's output is no tensor of tokens, or was not computed.
    """
    with _reading(adapter) as outputs:
        adapter.run(add_diffusion_noise(clean, t, seed, adapter.time_is_noise))
    missing = [feature for feature in adapter.blocks if feature not in outputs]
    if missing:
        raise UserError(f"{missing[0]}: the module {adapter.blocks[missing[0]]!r} did not run.")
    features = {}
    for feature in adapter.blocks:
        tokens = adapter.tokens(feature, outputs[feature])
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or len(tokens) != len(clean.names):
            found = list(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise UserError(f"{feature}: found an output of shape {found}, expected tokens [B, N, D].")
        features[feature] = tokens.float().mean(1)
    return features


@contextlib.contextmanager
def _reading(adapter: DiffusionAdapter) -> Iterator[dict[str, Tensor]]:
    """Collect the modules' outputs by feature name while the model runs."""
    outputs: dict[str, Tensor] = {}
    modules = dict(adapter.model.named_modules())

    def reader(feature: str):
        def read(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            outputs[feature] = output

        return read

    handles = [modules[name].register_forward_hook(reader(feature)) for feature, name in adapter.blocks.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def block_file_name(prefix: str, feature: str, t: float) -> str:
    """Name of the file of a block's features at a noise level."""
    return f"{prefix}_{feature}_t{t:.3f}.pt"
