"""How the cases of losses, equivariance and EMA are compared."""

from __future__ import annotations

import random
import re
from typing import Any

import torch

from losses.lpips import LPIPS
from networks.equivariance import EquivarianceTransform, draw_transform
from tests.golden.cases import Case, fill
from trainer.config import AdamConfig, GuardConfig
from trainer.ema import ema_beta, update_ema
from trainer.guard import LossMonitor
from trainer.systems.base import Phase


def check_ema(case: Case) -> None:
    """Half-life and ramp-up, and a short run."""
    for row in case.facts["rows"]:
        nimg = row["cur_nimg_before_increment"]
        beta = ema_beta(nimg, row["batch_size"], row["ema_kimg"], row["ema_rampup"])
        case.check_value(f"beta at {nimg}", beta, row["beta"], 1e-12)
    run = case.facts["run"]
    average, model = (torch.nn.Linear(2, 1, bias=False) for _ in range(2))
    average.weight.data = torch.tensor([run["ema_start"]])
    for step in run["steps"]:
        model.weight.data = torch.tensor([step["param"]])
        update_ema(average, model, ema_beta(step["cur_nimg"], run["batch_size"], run["ema_kimg"], run["ema_rampup"]))
        case.check(f"ema after {step['cur_nimg']}", average.weight, torch.tensor([step["ema_after"]]))


def check_equivariance(case: Case) -> None:
    """Targets, latents and the sequences of draws."""
    for name in case.tensors:
        match = re.fullmatch(r"(bilinear|bicubic|latent)_s([\d.]+)_r(\d)", name)
        if match is None:
            continue
        transform = EquivarianceTransform(float(match[2]), int(match[3]))
        if match[1] == "latent":
            case.check(name, transform.apply_to_latent(case.tensors["z"]))
        else:
            case.check(name, transform.apply_to_target(case.tensors["img"], match[1]))
    for title, rows in case.facts["sampling"].items():
        seed, p_latent, p_scale = re.search(r"seed\((\d+)\), p_prior ([\d.]+), p_prior_scale ([\d.]+)", title).groups()
        rng = random.Random(int(seed))
        for row in rows:
            drawn = draw_transform(rng, float(p_latent), float(p_scale))
            assert [drawn.scale, drawn.quarter_turns, drawn.on_input] == row
            case.compared += 1


def check_lpips(case: Case) -> None:
    """LPIPS on a filled trunk: value per pair, mean and gradient."""
    trunk = {}
    for key, entry in case.facts["upstream_state_dict"].items():
        if match := re.fullmatch(r"net\.slice\d\.(\d+)\.(weight|bias)", key):
            trunk[f"features.{match[1]}.{match[2]}"] = fill(key, entry["shape"])
    lpips = LPIPS(trunk)
    generator = torch.Generator().manual_seed(1234)
    a, b = (torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    b.requires_grad_()
    distances = lpips(a, b)
    case.check("value_per_sample", distances.view(2, 1, 1, 1))
    case.check_value("mean", distances.mean().item(), case.facts["mean"])
    (gradient,) = torch.autograd.grad(distances.mean(), b)
    expected = case.facts["grad_norm_of_mean_wrt_second_argument"]
    case.check_value("gradient norm", gradient.norm().item() / expected, 1.0, 1e-3)


PUBLISHED_GRACE_KIMG = 50


def check_safe_loss(case: Case) -> None:
    """Which losses of a sequence of steps are unsafe, and the value that the next one is compared with.

    An L1 loss on an image of one value, and hinge losses on constant logits; gradients of accepted steps.
    """
    reconstruction, discriminator = frozenset({"l1_pixel_loss"}), {"stylegan_t_" + part for part in PARTS}
    generator_phase = Phase("G", torch.nn.Identity(), {}, AdamConfig(), reconstruction_losses=reconstruction)
    discriminator_phase = Phase("D", torch.nn.Identity(), {}, AdamConfig(), bounded_losses=frozenset(discriminator))
    start = round(1000 * case.facts["resume_kimg"])
    monitor = LossMonitor(GuardConfig(grace_kimg=PUBLISHED_GRACE_KIMG), start)
    for i, row in enumerate(case.facts["rows"]):
        scale = torch.ones((), requires_grad=True)
        fake, real = (float(row[name]) * scale for name in ("fake_logit", "real_logit"))
        losses = dict(zip(PARTS, (torch.relu(1 + fake), torch.relu(1 - real))))
        losses["disc_loss"] = losses["gen_loss"] + losses["real_loss"]
        found = {f"stylegan_t_{part}": value.item() for part, value in losses.items()}
        unsafe = monitor.unsafe(found, discriminator_phase, row["cur_nimg"])
        assert [name for name in found if name in unsafe] == row["D_unsafe"], f"row {i}"
        assert bool(unsafe) == row["D_skipped"]
        if not unsafe:
            _check_gradient(case, f"D_grad of row {i}", losses["disc_loss"], scale, row["D_grad"])

        l1 = (float(row["gen_value"]) * scale).abs()
        found = {"l1_pixel_loss": l1.item(), "stylegan_t_gen_loss": -float(row["fake_logit"])}
        unsafe = monitor.unsafe(found, generator_phase, row["cur_nimg"])
        assert [name for name in found if name in unsafe] == row["G_unsafe"], f"row {i}"
        assert bool(unsafe) == row["G_skipped"]
        if not unsafe:
            monitor.accept(found, generator_phase)
            _check_gradient(case, f"G_grad of row {i}", l1, scale, row["G_grad"])
        _check_number(case, f"row {i}", monitor.references["l1_pixel_loss"], row["prev_l1_after"])


PARTS = ("gen_loss", "real_loss", "disc_loss")  # of the discriminator: fake, real, sum


def _check_gradient(case: Case, name: str, loss: torch.Tensor, scale: torch.Tensor, expected: Any) -> None:
    (gradient,) = torch.autograd.grad(loss, scale)
    _check_number(case, name, gradient.item(), expected)


def _check_number(case: Case, name: str, found: float, expected: Any) -> None:
    """Compare numbers of which either may be "nan"."""
    if expected == "nan":
        assert found != found, f"{name}: found {found}, expected nan"
        case.compared += 1
    else:
        case.check_value(name, found, float(expected))
