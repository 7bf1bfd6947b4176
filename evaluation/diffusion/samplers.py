"""Samplers of LightningDiT and REG: from noise and labels to normalised latents.

Time runs from 1 (noise) to 0 (data), and velocities point towards the noise.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from evaluation.diffusion.config import LightningDiTSamplingConfig, REGSamplingConfig
from evaluation.diffusion.draws import StepNoise, sample_noise
from evaluation.diffusion.integrators import dopri5, euler, euler_maruyama, heun
from losses.config import TimeInterval, TransportConfig
from losses.paths import PATHS
from losses.reg import REG_PATHS
from networks.diffusion.guidance import Guidance, combine, guided_velocity
from networks.diffusion.lightningdit import LightningDiT
from networks.diffusion.reg_sit import REGSiT
from networks.diffusion.transformer import DiffusionTransformer
from networks.fingerprint import weights_fingerprint

LAST_NOISY_TIME = 0.04  # where REG's stochastic steps end; one step without noise leads from there to the data

State = TypeVar("State")


class Sampler(Protocol):
    """Makes latents, of which each depends on nothing but the weights, its label, the seed and its number.

    Attributes:
        num_classes: labels are 0 to num_classes - 1.
        latent_shape: [C, h, w].
    """

    num_classes: int
    latent_shape: tuple[int, int, int]

    def identity(self) -> dict[str, Any]:
        """What decides the latents besides labels, seed and numbers, for a manifest."""
        ...

    def sample(self, indices: Sequence[int], labels: Tensor, seed: int) -> Tensor:
        """The normalised latents [B, C, h, w], float32, of samples with these numbers and labels [B]."""
        ...


def last(states: Iterable[State]) -> State:
    """The end of a trajectory, without keeping what came before."""
    return deque(states, maxlen=1)[0]


# --- LightningDiT ----------------------------------------------------------------------------------------------------


def shifted_times(count: int, shift: float, interval: TimeInterval) -> list[float]:
    """The time grid of LightningDiT, from the noise to the data.

    `count` evenly spaced shares tau of the way from the noise, then tau <- s tau / (1 + (s - 1) tau), then t = 1 - tau.

    Args:
        shift: s; 0 and 1 leave the shares as they are.
        interval: the times that the path allows.
    """
    tau = torch.linspace(1 - interval.high, 1 - interval.low, count)
    if shift > 0:
        tau = shift * tau / (1 + (shift - 1) * tau)
    return (1 - tau.double()).tolist()


class LightningDiTSampler:
    """Samples LightningDiT by its flow's differential equation, in float32.

    Args:
        network: in eval mode.
        transport: the path and the prediction that it was trained with.
        config: integrator, grid and guidance.
    Raises: UserError if guidance is asked for and the network has no null class.
    """

    def __init__(self, network: LightningDiT, transport: TransportConfig, config: LightningDiTSamplingConfig):
        self.network, self.transport, self.config = network, transport, config
        self.num_classes, self.latent_shape = network.config.num_classes, _latent_shape(network)
        self.null_label = _null_label(network, config.cfg_scale)
        self.times = shifted_times(config.num_sampling_steps, config.timestep_shift, transport.sampling_interval)
        # Rounded as the shares of the grid are, so that a grid point on the start is guided.
        start = torch.tensor(config.cfg_interval_start).item()
        channels = None if config.cfg_channels == "all" else config.cfg_channels
        self.guidance = Guidance(config.cfg_scale, channels, low=-math.inf, high=1 - start)

    def trajectory(self, noise: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """The states [B, C, h, w] at `self.times`, from the noise to the normalised latents."""

        def field(x: Tensor, t: float, step_start: float) -> Tensor:
            return self.guided(x, t, labels)

        match self.config.sampling_method:
            case "euler":
                return euler(field, noise, self.times)
            case "heun2":
                return heun(field, noise, self.times)
            case "dopri5":
                return dopri5(field, noise, self.times, self.config.rtol, self.config.atol)

    def guided(self, x: Tensor, t: float, labels: Tensor) -> Tensor:
        """dx/dt at one time, guided where guidance acts."""
        return guided_velocity(self.velocity, x, t, labels, self.null_label, self.guidance)

    def velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """dx/dt at times [B], whatever the network predicts."""
        if not self.transport.regular:  # the last step of dopri5 may reach beyond the interval
            interval = self.transport.sampling_interval
            t = t.clamp(interval.low, interval.high)
        velocity = self.network.velocity(x, t, y)
        if self.transport.prediction == "velocity":
            return velocity
        # What the network gives is a noise or score, which no direction of time can turn round.
        output, path = -velocity, PATHS[self.transport.path_type]
        to_velocity = path.velocity_from_noise if self.transport.prediction == "noise" else path.velocity_from_score
        return to_velocity(output, x, t)

    def identity(self) -> dict[str, Any]:
        settings = {"transport": self.transport.model_dump(), "sampling": self.config.model_dump()}
        return {"weights_sha256": weights_fingerprint(self.network.state_dict()), **settings}

    @torch.inference_mode()
    def sample(self, indices: Sequence[int], labels: Tensor, seed: int) -> Tensor:
        device = _device_of(self.network)
        noise = sample_noise(indices, self.latent_shape, seed, "sample_noise").to(device)
        return last(self.trajectory(noise, labels.to(device)))


# --- REG -------------------------------------------------------------------------------------------------------------


def sde_times(steps: int) -> list[float]:
    """The time grid of REG's stochastic equation: evenly spaced from 1 to 0.04, then 0."""
    return [*torch.linspace(1, LAST_NOISY_TIME, steps, dtype=torch.float64).tolist(), 0.0]


def ode_times(steps: int) -> list[float]:
    """The time grid of REG's ordinary equation: evenly spaced from 1 to 0."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


@dataclass(frozen=True)
class Entangled:
    """A latent [B, C, h, w] and its class token [B, D]."""

    latent: Tensor
    class_token: Tensor

    def joined(self) -> Tensor:
        """Both as one state [B, C h w + D]."""
        return torch.cat([self.latent.flatten(1), self.class_token], dim=1)


class REGSampler:
    """Samples latent and class token of REG together. The state is float64, the network sees float32.

    Args:
        network: in eval mode.
        path_type: the path that it was trained on, "linear" or "cosine".
        config: equation, steps and guidance.
    Raises: UserError if guidance is asked for and the network has no null class.
    """

    def __init__(self, network: REGSiT, path_type: str, config: REGSamplingConfig):
        self.network, self.config = network, config
        self.path_type, self.path = path_type, REG_PATHS[path_type]
        self.num_classes, self.latent_shape = network.config.num_classes, _latent_shape(network)
        self.null_label = _null_label(network, config.cfg_scale)
        self.times = sde_times(config.num_steps) if config.mode == "sde" else ode_times(config.num_steps)
        self.guidance = Guidance(config.cfg_scale, low=config.guidance_low, high=config.guidance_high)
        self.class_scale = config.cfg_scale if config.cls_cfg_scale is None else config.cls_cfg_scale

    def trajectory(
        self, noise: Entangled, labels: Tensor, step_noise: Callable[[], Tensor] | None = None
    ) -> Iterator[Entangled]:
        """The states at `self.times`, from the noise to the normalised latents and their class tokens, in float64.

        Args:
            step_noise: standard normal draws [B, C h w + D] in float64, called once for each stochastic step.
        """
        shape = noise.latent.shape

        def split(state: Tensor) -> Entangled:
            class_width = noise.class_token.shape[1]
            return Entangled(state[:, :-class_width].reshape(shape), state[:, -class_width:])

        def field(state: Tensor, t: float, step_start: float) -> Tensor:
            return self.velocity(split(state), t, labels, self.guidance.acts_at(step_start)).joined()

        start = noise.joined().double()
        if self.config.mode == "sde":
            assert step_noise is not None, "the stochastic equation needs noise"
            states = euler_maruyama(field, start, self.times, self.path, step_noise)
        elif self.config.heun:
            states = heun(field, start, self.times, euler_steps_at_end=1)
        else:
            states = euler(field, start, self.times)
        return map(split, states)

    def velocity(self, state: Entangled, t: float, labels: Tensor, guided: bool) -> Entangled:
        """The velocity of both at one time, in float64."""
        return (self._guided if guided else self._conditional)(state, t, labels)

    def _conditional(self, state: Entangled, t: float, labels: Tensor) -> Entangled:
        """The network's velocity, in float64."""
        x, k = state.latent.float(), state.class_token.float()
        velocity = self.network.velocity(x, x.new_full((len(x),), t), labels, k)
        return Entangled(velocity.latent.double(), velocity.class_token.double())

    def _guided(self, state: Entangled, t: float, labels: Tensor) -> Entangled:
        doubled = Entangled(torch.cat([state.latent] * 2), torch.cat([state.class_token] * 2))
        null = torch.full_like(labels, self.null_label)
        both = self._conditional(doubled, t, torch.cat([labels, null]))
        latent = combine(*both.latent.chunk(2), self.guidance.scale)
        conditional, unconditional = both.class_token.chunk(2)
        if self.class_scale > 0:
            return Entangled(latent, combine(conditional, unconditional, self.class_scale))
        return Entangled(latent, conditional)

    def identity(self) -> dict[str, Any]:
        settings = {"path_type": self.path_type, "sampling": self.config.model_dump()}
        return {"weights_sha256": weights_fingerprint(self.network.state_dict()), **settings}

    @torch.inference_mode()
    def sample(self, indices: Sequence[int], labels: Tensor, seed: int) -> Tensor:
        device, class_shape = _device_of(self.network), (self.network.config.z_dims[0],)
        noise = Entangled(
            sample_noise(indices, self.latent_shape, seed, "sample_noise").to(device),
            sample_noise(indices, class_shape, seed, "sample_class_noise").to(device),
        )
        step_noise = StepNoise(indices, noise.joined().shape[1], seed, device)
        return last(self.trajectory(noise, labels.to(device), step_noise)).latent.float()


def _latent_shape(network: DiffusionTransformer) -> tuple[int, int, int]:
    config = network.config
    return config.in_channels, config.input_size, config.input_size


def _null_label(network: DiffusionTransformer, cfg_scale: float) -> int:
    """The label without a class, which a network need not have where nothing is guided."""
    return network.null_label if cfg_scale > 1 else -1


def _device_of(network: DiffusionTransformer) -> torch.device:
    return network.pos_embed.device
