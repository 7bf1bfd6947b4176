"""How the cases of flow matching, REG's losses and the samplers are compared.

The reference's LightningDiT counts time from the noise: its t is 1 - t here, and its velocities have the other sign.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from evaluation.diffusion.config import LightningDiTSamplingConfig, REGSamplingConfig
from evaluation.diffusion.samplers import Entangled, LightningDiTSampler, REGSampler, last, shifted_times
from losses.config import REGLossConfig, TransportConfig
from losses.flow_matching import flow_matching_loss, per_sample_mean
from losses.paths import PATHS
from losses.reg import REG_PATHS, reg_loss
from losses.times import logit_normal_times, lognormal_ratio_times
from tests.golden.cases import Case
from tests.golden.check_diffusion_networks import filled_lightningdit, filled_reg

GUIDED_TOLERANCE, DOPRI5_TOLERANCE = 2e-5, 1e-3  # as diffusion_lightningdit_ode says in words


def check_transport(case: Case) -> None:
    """Points, targets, drifts, scores and losses of every path, prediction and weight."""
    stored = case.tensors
    data, noise, output, t = (stored[f"in.{key}"] for key in ("x1", "x0", "model_output", "t"))
    t = 1 - t
    for name, reference in stored.items():
        path_type, *rest = name.split(".")
        if path_type == "in":
            continue
        case.check(name, transport_value(path_type, rest, data, noise, output, t).reshape(reference.shape))


def transport_value(
    path_type: str, quantity: list[str], data: Tensor, noise: Tensor, output: Tensor, t: Tensor
) -> Tensor:
    """A quantity of `diffusion_transport` by its name behind the path's."""
    path = PATHS[path_type]
    point = path.point(data, noise, t)
    match quantity:
        case ["xt"]:
            return point.x
        case ["ut"]:
            return -point.velocity
        case ["drift"]:
            return path.drift(point.x, t)
        case ["var"]:
            return path.diffusion(t)
        case ["score_from_velocity"]:
            return path.score_from_velocity(-output, point.x, t)
        case ["noise", "ode_drift"]:
            return -path.velocity_from_noise(output, point.x, t)
        case ["score", "ode_drift"]:
            return -path.velocity_from_score(output, point.x, t)
        case [prediction, weight, "loss"]:
            given = -output if prediction == "velocity" else output
            options = {"path_type": path_type, "prediction": prediction}
            transport = TransportConfig(**options, loss_weight=None if weight == "None" else weight)
            return flow_matching_loss(given, point, transport).mse
    raise AssertionError(f"{path_type}: nothing here is called {'.'.join(quantity)}")


def check_lightningdit_loss(case: Case) -> None:
    """Times, noisy latents, terms and gradients of a training step."""
    stored = case.tensors
    network = filled_lightningdit(case.facts["kwargs"], case.facts["state_dict"])
    t = 1 - stored["in.t"]
    point = PATHS["Linear"].point(stored["in.x1"], stored["in.x0"], t)
    velocity = network.velocity(point.x, t, stored["in.y"])
    loss = flow_matching_loss(velocity, point, TransportConfig(use_cosine_loss=True))
    loss.total.backward()
    found = {
        "in.t": 1 - logit_normal_times(-stored["in.normal"]),
        "xt": point.x,
        "out.pred": -velocity,
        "out.mse": loss.mse,
        "out.cos": loss.cosine,
        "out.total": loss.total,
        **gradients(network),
    }
    for name in stored.keys() - {"in.x1", "in.x0", "in.normal", "in.y"}:
        case.check(name, found[name])


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """The gradient of each parameter that has one, by the names of the cases."""
    return {f"grad.{name}": value.grad for name, value in network.named_parameters() if value.grad is not None}


def check_lightningdit_ode(case: Case) -> None:
    """Time grids and whole trajectories, guided and not, of all integrators."""
    stored = case.tensors
    network = filled_lightningdit(case.facts["kwargs"], case.facts["state_dict"])
    for name in stored.keys() - {"in.z", "in.y"}:
        if grid := re.fullmatch(r"grid\.n(\d+)\.shift([\d.]+)", name):
            interval = TransportConfig().sampling_interval
            times = shifted_times(int(grid[1]), float(grid[2]), interval)
            case.check(name, 1 - torch.tensor(times, dtype=torch.float64))
            continue
        run = case.facts["runs"][name]
        options = {key: value for key, value in run.items() if key != "num_steps"}
        sampling = LightningDiTSamplingConfig(num_sampling_steps=run["num_steps"], **options)
        sampler = LightningDiTSampler(network, TransportConfig(), sampling)
        with torch.no_grad():
            states = torch.stack(list(sampler.trajectory(stored["in.z"], stored["in.y"])))
        check_trajectory(case, name, states, sampling)


def check_trajectory(case: Case, name: str, states: Tensor, sampling: LightningDiTSamplingConfig) -> None:
    """Compare the states of a run by the tolerance that the case has for its kind."""
    tolerance = GUIDED_TOLERANCE if sampling.cfg_scale > 1 else 1e-5
    if sampling.sampling_method == "dopri5":
        tolerance = DOPRI5_TOLERANCE
    case.facts.setdefault("tolerance_overrides", {}).setdefault(name, tolerance)
    case.check(name, states)


def check_reg_loss(case: Case) -> None:
    """Terms, totals and gradients of both paths, and the times of log-normal ratios."""
    stored = case.tensors
    found: dict[str, Tensor] = {}
    for path_type in REG_PATHS:
        found[f"lognormal.t_{path_type}"] = lognormal_ratio_times(stored["lognormal.normal"], path_type)
        found |= reg_terms(case, path_type)
    for name in stored.keys() - {"lognormal.normal"}:
        if not name.startswith("in."):
            case.check(name, found[name])


def reg_terms(case: Case, path_type: str) -> dict[str, Tensor]:
    """The terms of one path under the names of the case; gradients of the linear path's total."""
    stored, path, config = case.tensors, REG_PATHS[path_type], REGLossConfig(path_type=path_type)
    network = filled_reg(case.facts["kwargs"], case.facts["state_dict"])
    t = stored["in.t"]
    point = path.point(stored["in.x"], stored["in.noise"], t)
    class_point = path.point(stored["in.cls"], stored["in.noise_cls"], t)
    output = network(point.x, t, stored["in.y"], class_point.x)
    loss = reg_loss(output.latent, output.class_token, output.projections, point, class_point, [stored["in.zs"]])
    cls, total = loss.cls, loss.total(config)
    if path_type == "linear":
        total.backward()
    else:
        cls = crossed_class_error(output.class_token, stored["in.cls"], stored["in.noise_cls"], path, t)
        total = total + config.cls_weight * (cls.mean() - loss.cls.mean())
    terms = {"denoise": loss.denoise, "cls": cls, "proj": loss.proj, "total": total}
    found = {f"{path_type}.{name}": term for name, term in terms.items()}
    return found | gradients(network) if path_type == "linear" else found


def crossed_class_error(velocity: Tensor, data: Tensor, noise: Tensor, path, t: Tensor) -> Tensor:
    """The class token's error as the reference has it on the cosine path, where every sample meets the times of all."""
    at = path.coefficients(t[:, None, None, None])
    return per_sample_mean((velocity - (at.alpha_slope * data + at.sigma_slope * noise)).square())


def check_reg_sde(case: Case) -> None:
    """What the network sees at each step of the stochastic sampler, and where the sampler ends."""
    stored, network = case.tensors, filled_reg(case.facts["kwargs"], case.facts["state_dict"])
    found: dict[str, Tensor] = {}
    for name, run in case.facts["runs"].items():
        options = {key: value for key, value in run.items() if key != "path_type"}
        sampler = REGSampler(network, run["path_type"], REGSamplingConfig(mode="sde", **options))
        draws = iter(zip(stored["in.eps"], stored["in.cls_eps"]))
        start = Entangled(stored["in.z"], stored["in.cls_z"])
        with torch.no_grad():
            states = list(
                sampler.trajectory(start, stored["in.y"], lambda draws=draws: Entangled(*next(draws)).joined())
            )
        found |= {
            f"{name}.model_in_x": torch.stack([state.latent for state in states[:-1]]),
            f"{name}.model_in_cls": torch.stack([state.class_token for state in states[:-1]]),
            f"{name}.t": torch.tensor(sampler.times[:-1], dtype=torch.float64),
            f"{name}.out": states[-1].latent,
        }
    for name in stored:
        if not name.startswith("in."):
            case.check(name, found[name])


def check_reg_ode(case: Case) -> None:
    """Where the deterministic sampler ends, with Euler's and Heun's steps."""
    stored, network = case.tensors, filled_reg(case.facts["kwargs"], case.facts["state_dict"])
    found: dict[str, Tensor] = {}
    for name, run in case.facts["runs"].items():
        sampler = REGSampler(network, run.get("path_type", "linear"), REGSamplingConfig(mode="ode", **run))
        with torch.no_grad():
            end = last(sampler.trajectory(Entangled(stored["in.z"], stored["in.cls_z"]), stored["in.y"]))
        found |= {f"{name}.x": end.latent, f"{name}.cls": end.class_token}
    for name in stored:
        if not name.startswith("in."):
            case.check(name, found[name])
