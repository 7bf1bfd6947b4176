"""How the cases of losses on images, of adversarial losses and of the warm-up are compared."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.resize import resize_images
from common.value_range import unit_to_signed
from losses.adversarial import FORMS
from losses.clip import squared_angle
from losses.config import MultiscaleConfig, TermConfig
from losses.interfaces import DiscriminatorInputs, Loss, LossInputs
from losses.matching_aware import MatchingAwareLoss
from losses.objective import Objective
from losses.pixel import L1Loss, L2Loss
from losses.schedule import Moment, blur_sigma
from losses.ssim import SSIMLoss
from losses.warmup import DiscriminatorWarmup
from networks.discriminators.blur import blur_images
from networks.interfaces import Verdict
from tests.golden.cases import Case

TERM = TermConfig(weight=1.0)
GRADIENT_TOLERANCE = 1e-3  # relative


# --- losses on images --------------------------------------------------------------------------------------------


def check_pixel_losses(case: Case) -> None:
    """Every number and every tensor of the case; one that is not known here is a failure."""
    real, generated = case.tensors["real01"], case.tensors["gen"]
    target = unit_to_signed(real)
    values = dict(case.facts["values"])
    values.pop("multiscale_generated")
    for name, loss in (("l1", L1Loss(TERM)), ("l2", L2Loss(TERM)), ("ssim_loss", SSIMLoss(TERM))):
        _check_value_and_gradient(case, name, loss, target, generated, values)
    same = SSIMLoss(TERM)(LossInputs(target, target)).item()
    case.check_value("ssim_loss_identical", same, values.pop("ssim_loss_identical"))
    _check_multiscale(case, generated, values)
    _check_blur_schedule(case, values)
    _check_logits(case, values)
    assert not values, f"{case.name}: no test for the values {sorted(values)}"
    _check_tensors(case, real, target)


def _check_value_and_gradient(
    case: Case, name: str, loss: Loss, target: Tensor, generated: Tensor, values: dict[str, Any]
) -> None:
    generated = generated.clone().requires_grad_()
    value = loss(LossInputs(target, generated))
    (gradient,) = torch.autograd.grad(value, generated)
    case.check_value(name, value.item(), values.pop(name))
    expected = values.pop(f"{name}_grad_norm_wrt_gen")
    case.check_value(f"{name} gradient, relative", gradient.norm().item() / expected, 1.0, GRADIENT_TOLERANCE)


def _check_multiscale(case: Case, generated: Tensor, values: dict[str, Any]) -> None:
    """The loss of each size by itself, through the objective."""
    sizes = values.pop("multiscale_sizes")
    real = case.tensors["real01"]
    for name in [name for name in values if name.startswith("multiscale_l1_")]:
        interpolation = name.removeprefix("multiscale_l1_")
        targets = {side: unit_to_signed(resize_images(real, interpolation, size=side)) for side in sizes}
        pyramid = {side: _at_side(generated, side) for side in sizes}
        objective = Objective({"multiscale_pixel": MultiscaleConfig(weights=dict.fromkeys(sizes, 0.5))})
        inputs = LossInputs(unit_to_signed(real), generated, pyramid, targets)
        found = objective.reconstruction_terms(inputs, Moment(0))["multiscale_pixel"]
        expected = dict(zip(sizes, values.pop(name), strict=True))
        case.check_value(name, found.loss.item(), 0.5 * sum(expected.values()))
        for side, value in expected.items():
            case.check_value(f"{name} at {side}", found.details[f"resolution_{side}"].item(), value)


def _at_side(images: Tensor, side: int) -> Tensor:
    if side <= images.shape[-1]:
        return F.adaptive_avg_pool2d(images, side)
    return F.interpolate(images, size=side, mode="nearest")


def _check_blur_schedule(case: Case, values: dict[str, Any]) -> None:
    for name in [name for name in values if name.startswith("blur_schedule_")]:
        init, fade = map(float, re.fullmatch(r"blur_schedule_init([\d.]+)_fade([\d.]+)", name).groups())
        for nimg, sigma in values.pop(name):
            case.check_value(f"{name} at {nimg}", blur_sigma(nimg, init, fade), sigma, 1e-12)
    case.check_value("blur without a fade", blur_sigma(0, 2.0, 0.0), values.pop("blur_sigma_when_fade0"))


def _check_logits(case: Case, values: dict[str, Any]) -> None:
    a, b = case.tensors["a"], case.tensors["b"]
    shuffled = DiscriminatorInputs(Verdict(), Verdict(), fake_shuffled=Verdict(b), real_shuffled=Verdict(a))
    matching = MatchingAwareLoss(TERM).discriminator_loss(shuffled)
    case.check_value("matching_aware", matching.item(), values.pop("matching_aware"))
    hinge = FORMS["hinge"]
    case.check_value("hinge, real", hinge.on_real(a).item(), values.pop("stylegan_t_disc_real"))
    case.check_value("hinge, fake", hinge.on_fake(a).item(), values.pop("stylegan_t_disc_fake"))


def _check_tensors(case: Case, real: Tensor, target: Tensor) -> None:
    for name in case.tensors:
        if match := re.fullmatch(r"multiscale_target_(\w+)_(\d+)", name):
            case.check(name, resize_images(real, match[1], size=int(match[2])))
        elif match := re.fullmatch(r"blur_([\d.]+)", name):
            case.check(name, blur_images(target, float(match[1])))
        elif name == "spherical":
            case.check(name, squared_angle(case.tensors["a"], case.tensors["b"]))
        else:
            assert name in ("real01", "gen", "a", "b"), f"{case.name}: the stored tensor {name!r} has no counterpart"


# --- warm-up -----------------------------------------------------------------------------------------------------


def check_warmup(case: Case) -> None:
    """The step at which each discriminator starts, from the sequences that the case describes."""
    for name, entry in case.facts["cases"].items():
        warmup = DiscriminatorWarmup(stylegan_t="stylegan_t" in name, patchgan="patchgan" in name)
        on = {"stylegan_t_on": "stylegan_t" not in name, "patchgan_on": False}
        constant = re.search(r"constant_([\d.]+)", name)
        pixel_loss = _sequence(entry.get("pixel_loss", float(constant[1]) if constant else 0.0))
        adversarial_loss = _sequence(entry.get("generator_gan_loss", 0.0))
        last_step = (
            entry["error"][0] if entry["error"] else _last_step([*entry.values(), case.facts["details"]["cases"]])
        )
        found = []
        for i in range(last_step + 1):
            started = warmup.update(pixel_loss(i), adversarial_loss(i))
            on |= {f"{discriminator}_on": True for discriminator in started}
            if started:
                found.append({"step": i, **on})
        expected = list(entry["events"])
        if entry["error"]:  # the reference stops where PatchGAN starts, at the freeze that comes with it
            assert entry["error"][1:] == ["ValueError", "Unknown train_mode freeze32"]
            expected.append({"step": last_step, **on, "patchgan_on": True})
        assert found == expected, name
        assert warmup.freezes_first_half is on["patchgan_on"]
        case.compared += 1


def _last_step(texts: list[Any]) -> int:
    """The end of `i = 0..999` in the first text that has one."""
    return next(int(match[1]) for text in texts if (match := re.search(r"i = 0\.\.(\d+)", str(text))))


_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS = {"exp": math.exp, "sin": math.sin, "cos": math.cos, "round": round, "max": max, "min": min}


def _sequence(given: float | str | Iterable[float]) -> Callable[[int], float]:
    """A loss by step: a constant, a list, or a formula in i such as `round(0.3*exp(-i/120), 6), i = 0..999`."""
    if isinstance(given, list):
        return given.__getitem__
    if not isinstance(given, str):
        return lambda i: float(given)
    formula = ast.parse(re.sub(r",\s*i\s*=.*$", "", given).replace("^", "**"), mode="eval").body
    return lambda i: _evaluate(formula, i)


def _evaluate(node: ast.expr, i: int) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name("i"):
            return i
        case ast.UnaryOp(ast.USub(), operand):
            return -_evaluate(operand, i)
        case ast.BinOp(left, operation, right):
            return _OPERATIONS[type(operation)](_evaluate(left, i), _evaluate(right, i))
        case ast.Call(ast.Name(function), arguments):
            return _FUNCTIONS[function](*(_evaluate(argument, i) for argument in arguments))
    raise AssertionError(f"unknown in a formula: {ast.unparse(node)}")
