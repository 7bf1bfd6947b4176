"""How the cases of losses, equivariance and EMA are compared."""

from __future__ import annotations

import random
import re

import torch

from losses.lpips import LPIPS
from networks.equivariance import EquivarianceTransform, draw_transform
from tests.golden.cases import Case, fill
from trainer.ema import ema_beta, update_ema


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
