"""How the cases of losses, equivariance and EMA are compared."""

from __future__ import annotations

import random
import re
from typing import Any

import torch
from torch import Tensor

from losses.adaptive_weight import adaptive_weight
from losses.lpips import LPIPS
from losses.vf_alignment import vf_alignment_loss
from networks.checkpoint.names import QUANTIZER, to_own_name, to_reference_name
from networks.equivariance import EquivarianceTransform, draw_transform
from networks.latent import DiagonalGaussian
from networks.quantizer import MultiCodebookQuantizer, usage_percent
from networks.tokens import map_to_tokens, tokens_to_map
from tests.golden.cases import Case, fill, load_filled
from tests.golden.check_networks import codebook_losses
from trainer.config import AdamConfig, GuardConfig, TokenizerGuardConfig
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


def check_latent_losses(case: Case) -> None:
    """KL, VF alignment with its adaptive weight, and the losses and usage of codebooks."""
    tensors, found = case.tensors, {}
    for suffix, name in (("", "kl_loss_with_clamped_logvar_entries"), ("_plain", "kl_loss_plain")):
        per_sample = DiagonalGaussian(tensors[f"kl_params{suffix}"]).kl()
        found |= {f"kl_per_sample{suffix}": per_sample, name: per_sample.mean()}
    found["vf_loss_default"] = vf_alignment_loss(tensors["vf_z"], tensors["vf_aux"])
    margins = case.facts["details"]["vf_loss_margins"]
    found["vf_loss_margins"] = vf_alignment_loss(tensors["vf_z"], tensors["vf_aux"], **margins)
    latent_side = tensors["vf_z"].shape[-1]
    for name, features in tensors.items():
        if match := re.fullmatch(r"vf_aux_(\d+)x\1", name):
            pooled = f"vf_loss_default_aux_pooled_{match[1]}_to_{latent_side}"
            found[pooled] = vf_alignment_loss(tensors["vf_z"], features)
    found |= _found_codebooks(case)
    inputs = {n for n in tensors if n.startswith(("ad_", "vf_"))} | {"kl_params", "kl_params_plain", "vq_features"}
    for name in tensors.keys() - inputs:
        case.check(name, found[name])
    values = case.facts["values"]
    for name in values.keys() - {"adaptive", "non_adaptive_weight"}:
        case.check_value(name, found[name].item(), values[name])
    _check_adaptive_weight(case)


def _found_codebooks(case: Case) -> dict[str, Tensor]:
    k = case.facts["vq"]["kwargs"]
    module = MultiCodebookQuantizer(k["vocab_size"], k["vocab_width"], k["num_codebooks"])
    shapes = {name: entry["shape"] for name, entry in case.facts["vq"]["state_dict"].items()}
    state = {name: fill(name, shape) for name, shape in shapes.items() if not name.endswith("vocab_usage")}
    load_filled(module, {to_own_name(name, QUANTIZER): value for name, value in state.items()})
    assert {to_reference_name(name, QUANTIZER) for name in module.state_dict()} == shapes.keys()
    features = case.tensors["vq_features"]
    quantized = module(tokens_to_map(features, (features.shape[1], 1)))
    vq, entropy = codebook_losses(quantized, k["beta"], k["entropy_temp"], k["use_entropy_loss"])
    return {
        "vq_output": map_to_tokens(quantized.z),
        "vq_indices": quantized.indices.flatten(2),
        "vq_loss": vq,
        "entropy_loss": entropy,
        "codebook_usage_percent": usage_percent(module.code_shares(quantized.indices)),
    }


def _check_adaptive_weight(case: Case) -> None:
    """A projection, a decoder and an alignment head of one matrix each."""
    t, expected = case.tensors, case.facts["values"]["adaptive"]
    weight = t["ad_W"].requires_grad_()
    z = torch.nn.functional.conv2d(t["ad_x"], weight[:, :, None, None])
    rec = (torch.nn.functional.conv2d(z, t["ad_R"]) - t["ad_target"]).abs().mean()
    vf = vf_alignment_loss(torch.nn.functional.conv2d(z, t["ad_P"]), t["vf_aux"])
    (of_rec,) = torch.autograd.grad(rec, weight, retain_graph=True)
    (of_vf,) = torch.autograd.grad(vf, weight)
    factor = expected["vf_loss_weight"]
    found = {
        "rec_loss": rec,
        "vf_loss": vf,
        "rec_grad_norm": of_rec.norm(),
        "vf_grad_norm": of_vf.norm(),
        "vf_loss_weight": factor,
        "effective_weight": factor * adaptive_weight(of_rec, of_vf),
    }
    for name, value in expected.items():
        case.check_value(name, torch.as_tensor(found[name]).item(), value, 1e-5 if name.endswith("loss") else 1e-3)
    case.check_value("non_adaptive_weight", factor, case.facts["values"]["non_adaptive_weight"])


def filled_lpips_trunk(case: Case) -> dict[str, torch.Tensor]:
    """torchvision's VGG16 entries with the weights of the fill rule, from the names that an LPIPS case lists."""
    trunk = {}
    for key, entry in case.facts["upstream_state_dict"].items():
        if match := re.fullmatch(r"net\.slice\d\.(\d+)\.(weight|bias)", key):
            trunk[f"features.{match[1]}.{match[2]}"] = fill(key, entry["shape"])
    return trunk


def check_lpips(case: Case) -> None:
    """LPIPS on a filled trunk: value per pair, mean and gradient."""
    lpips = LPIPS(filled_lpips_trunk(case))
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
    bounds = dict.fromkeys(discriminator, TokenizerGuardConfig().max_discriminator_loss)
    discriminator_phase = Phase("D", torch.nn.Identity(), {}, AdamConfig(), bounded_losses=bounds)
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
