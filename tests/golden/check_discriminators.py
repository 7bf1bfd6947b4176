"""How the cases of the discriminators are compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.value_range import unit_to_signed
from losses.adversarial import FORMS
from losses.config import PatchGANTermConfig, TermConfig
from losses.feature_matching import FeatureMatchingLoss
from losses.interfaces import DiscriminatorInputs, LossInputs
from losses.patchgan import PatchGANLoss
from networks.checkpoint.names import (
    HEAD,
    PATCHGAN_FEATURES,
    PATCHGAN_FLAT,
    Rows,
    discriminator_rows,
    to_reference_name,
)
from networks.config import DiscriminatorConfig
from networks.discriminators.backbone import empty_backbone
from networks.discriminators.diffaug import (
    Color,
    Cutout,
    Rescale,
    Translation,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    augment,
)
from networks.discriminators.discriminators import Discriminators
from networks.discriminators.heads import DiscriminatorHead
from networks.discriminators.patchgan import PatchGAN
from networks.interfaces import Verdict
from tests.golden.cases import Case, fill

GRADIENT = 1e-3
"""Allowed relative difference of gradient norms."""


# --- weights by the fill rule ------------------------------------------------------------------------------------


def load_filled_discriminator(module: nn.Module, rows: Rows, prefix: str = "") -> None:
    """Give a module the weights of the fill rule, which hashes `prefix` + the reference's names.

    The vectors of the spectral norm are not taken as they are, but after ten power iterations on the filled weight.
    """
    names = {name: prefix + to_reference_name(name, rows) for name in module.state_dict()}
    state = {name: fill(names[name], list(value.shape)) for name, value in module.state_dict().items()}
    for name in state:
        if name.endswith("weight_orig"):
            matrix = state[name].flatten(1)
            u = F.normalize(state[name.replace("_orig", "_u")], dim=0, eps=1e-12)
            for _ in range(10):
                v = F.normalize(matrix.T @ u, dim=0, eps=1e-12)
                u = F.normalize(matrix @ v, dim=0, eps=1e-12)
            state |= {name.replace("_orig", "_u"): u, name.replace("_orig", "_v"): v}
    module.load_state_dict(state, strict=True)


def filled_discriminators(config: DiscriminatorConfig, interpolation: str, label_dim: int = 0) -> Discriminators:
    """The discriminators of a configuration, DINO included, with the weights of the fill rule."""
    backbone = empty_backbone(config.backbone) if config.use_stylegan_t_discriminator else None
    model = Discriminators(config, interpolation, backbone, label_dim)
    load_filled_discriminator(model, discriminator_rows(config.get_interm_feat))
    return model


def _require_listed_names(module: nn.Module, rows: Rows, listed: Mapping[str, dict]) -> None:
    found = {to_reference_name(name, rows): list(value.shape) for name, value in module.state_dict().items()}
    assert found == {name: entry["shape"] for name, entry in listed.items()}


def _compare_all(case: Case, found: Mapping[str, Callable[[], Tensor]], inputs: set[str]) -> None:
    """Every stored tensor but the inputs must be known and match."""
    for name in case.tensors:
        if name not in inputs:
            assert name in found, f"{case.name}: the stored tensor {name!r} has no counterpart"
            case.check(name, found[name]())


def _random_images(text: str) -> list[Tensor]:
    """Images as a case words them, e.g. `fake then real: torch.rand(2,3,64,64, one generator seed 1)*2-1`."""
    shape, seed, signed = re.search(r"torch\.rand\(([\d,]+), .*generator seed (\d+)\)(\*2-1)?", text).groups()
    generator = torch.Generator().manual_seed(int(seed))
    sides = [int(n) for n in shape.split(",")]
    batches = [torch.rand(sides, generator=generator) for _ in range(1 + text.count(" then "))]
    return [unit_to_signed(batch) if signed else batch for batch in batches]


def _check_gradient(case: Case, name: str, scalar: Tensor, of: list[Tensor], expected: float) -> None:
    gradients = torch.autograd.grad(scalar, of, retain_graph=True)
    norm = torch.stack([g.norm() for g in gradients]).norm().item()
    case.check_value(f"{name}, relative", norm / expected, 1.0, GRADIENT)


# --- differentiable augmentation ---------------------------------------------------------------------------------


def check_diffaug(case: Case) -> None:
    """The draws of a seed, the state after every operation, and the operation of no policy."""
    found: dict[str, Callable[[], Tensor]] = {}
    for title, facts in case.facts["draws"].items():
        found |= _diffaug_run(title, case.tensors[f"{title}_x"], facts)
    for name in case.tensors:
        if match := re.fullmatch(r"resize_(\d+)", name):
            u = case.facts["resize_u"][int(match[1])]
            found[name] = lambda u=u: Rescale(u).apply(case.tensors["sq_x"])
    _compare_all(case, found, {f"{title}_x" for title in case.facts["draws"]})


def _diffaug_run(title: str, images: Tensor, facts: dict) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(facts["torch.manual_seed"])
    color = Color.draw(images, generator)
    shift = Translation.draw(images, generator)
    box = Cutout.draw(images, generator)
    states = [images]
    for step in (
        lambda x: adjust_brightness(x, color.brightness),
        lambda x: adjust_saturation(x, color.saturation),
        lambda x: adjust_contrast(x, color.contrast),
        shift.apply,
        box.apply,
    ):
        states.append(step(states[-1]))
    generator = torch.Generator().manual_seed(facts["torch.manual_seed"])
    found = {"full": augment(images, ("color", "translation", "cutout"), generator)}
    found |= {f"u_{name}": getattr(color, name) for name in ("brightness", "saturation", "contrast")}
    found |= {"t_rows": shift.rows, "t_cols": shift.columns, "c_rows": box.rows, "c_cols": box.columns}
    steps = ("brightness", "saturation", "contrast", "translation", "cutout")
    found |= {f"after_{name}": state for name, state in zip(steps, states[1:], strict=True)}
    return {f"{title}_{name}": lambda value=value: value for name, value in found.items()}


# --- heads -------------------------------------------------------------------------------------------------------


def check_head(case: Case) -> None:
    """Single heads: groups of the local batch norm, power iteration, labels."""
    found: dict[str, Callable[[], Tensor]] = {}
    inputs = {name for name in case.tensors if re.fullmatch(r"\w+_b\d+_[xc]", name)}
    for title, facts in case.facts["heads"].items():
        for name in sorted(inputs):
            if name.startswith(f"{title}_b") and name.endswith("_x"):
                found |= _head_run(name.removesuffix("_x"), facts, case.tensors)
    _compare_all(case, found, inputs)


def _head_run(run: str, facts: dict, tensors: Mapping[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    head = DiscriminatorHead(facts["kwargs"]["channels"], facts["kwargs"]["c_dim"])
    _require_listed_names(head, HEAD, facts["state_dict"])
    load_filled_discriminator(head, HEAD, facts["key_prefix_for_fill_rule"])
    x, label = tensors[f"{run}_x"], tensors.get(f"{run}_c")
    with torch.no_grad():
        found = {
            "logits_eval": head(x, label),
            "logits_train_1st": head(x, label, update_norms=True),
            "logits_train_2nd": head(x, label, update_norms=True),
            "u_after": head.first.conv.weight_u.clone(),
        }
    return {f"{run}_{name}": lambda value=value: value for name, value in found.items()}


# --- the projected discriminator ---------------------------------------------------------------------------------


def check_projected(case: Case) -> None:
    """The whole StyleGAN-T discriminator: sizes and resizing, features of the backbone, values and gradients."""
    config = DiscriminatorConfig(use_stylegan_t_discriminator=True)
    model = filled_discriminators(config, "bilinear")
    found: dict[str, Callable[[], Tensor]] = {}
    for title, run in case.facts["runs"].items():
        (images,) = _random_images(run["input"])
        model.projected.interpolation = run["interpolation"]
        logits = model(images.requires_grad_()).projected
        assert list(logits.shape) == run["logits_shape"]
        found[f"logits_{title}"] = lambda logits=logits: logits
        _check_hinge(case, title, run, logits, images, list(model.trainable_parts().parameters()))
    with torch.no_grad():
        features = model.projected.backbone(_random_images(case.facts["dino_input"])[0])
    for i, feature in enumerate(features):
        assert list(feature.shape) == case.facts["dino_feature_shapes"][str(i)]
        expected = case.facts["dino_feature_norms"][str(i)]
        case.check_value(f"norm of feature {i}", feature.norm().item(), expected)
        found[f"dino_feat_{i}_first8"] = lambda feature=feature: feature[:, :8, :16]
    _compare_all(case, found, set())


def _check_hinge(case: Case, title: str, run: dict, logits: Tensor, images: Tensor, parameters: list[Tensor]) -> None:
    values = {
        "hinge_real": F.relu(1 - logits).mean(),
        "hinge_fake": F.relu(1 + logits).mean(),
        "generator_loss": -logits.mean(),
    }
    for name, value in values.items():
        case.check_value(f"{title}: {name}", value.item(), run[name])
    for name, expected in run.items():
        if match := re.fullmatch(r"(\w+)_grad_norm_wrt_(input|head_parameters)", name):
            of = [images] if match[2] == "input" else parameters
            _check_gradient(case, f"{title}: {name}", values[match[1]], of, expected)
        else:
            assert name in (*values, "input", "interpolation", "logits_shape"), f"{title}: {name} is not compared"


# --- PatchGAN ----------------------------------------------------------------------------------------------------


def check_patchgan(case: Case) -> None:
    """The three-scale PatchGAN in both layouts, with its losses."""
    found: dict[str, Callable[[], Tensor]] = {}
    for title, run in case.facts["runs"].items():
        rows = PATCHGAN_FEATURES if run["get_interm_feat"] else PATCHGAN_FLAT
        model = PatchGAN(run["get_interm_feat"])
        _require_listed_names(model, rows, case.facts["state_dict"][f"feat{run['get_interm_feat']:d}"])
        load_filled_discriminator(model, rows, case.facts["key_prefix_for_fill_rule"])
        images, real_images = _random_images(run["inputs"])
        fake, real = model(images.requires_grad_()), model(real_images)
        assert [[list(x.shape) for x in outputs] for outputs in fake] == run["shapes"]
        for kind, verdict in (("fake", fake), ("real", real)):
            for i, outputs in enumerate(verdict):
                found[f"{title}_{kind}_logits_scale{i}"] = lambda outputs=outputs: outputs[-1]
        inputs = LossInputs(real_images, images, fake=Verdict(patches=fake), real=Verdict(patches=real))
        _check_patchgan_run(case, title, run, images, inputs)
    _compare_all(case, found, set())


def _check_patchgan_run(case: Case, title: str, run: dict, images: Tensor, inputs: LossInputs) -> None:
    """Every number of a run."""
    verdicts = DiscriminatorInputs(inputs.fake, inputs.real)
    for name, expected in run.items():
        where = f"{title}: {name}"
        if name in FORMS:
            loss = PatchGANLoss(PatchGANTermConfig(weight=1.0, loss_type=name))
            parts = loss.discriminator_details(verdicts)
            values = {"disc_fake": parts["fake_loss"], "disc_real": parts["real_loss"], "gen": loss(inputs)}
            _check_values(case, where, values, expected, images)
        elif name == "feature_matching" and run["get_interm_feat"]:
            loss = FeatureMatchingLoss(TermConfig(weight=1.0))
            values = {name: loss(inputs)}
            _check_values(case, where, values, {k: v for k, v in run.items() if k.startswith(name)}, images)
        elif name == "feature_abs_means_fake":
            for found, means in zip(inputs.fake.patches, expected, strict=True):
                for x, mean in zip(found, means, strict=True):
                    case.check_value(where, x.abs().mean().item(), mean)
        elif name == "per_scale_mean_and_sign_mean_fake":
            details = PatchGANLoss(PatchGANTermConfig(weight=1.0)).details(inputs)
            found = torch.stack(list(details.values())).view(-1, 2)
            case.check(where, found, torch.tensor(expected))
        else:
            known = ("batch", "size", "inputs", "shapes", "get_interm_feat")
            assert name in known or name.startswith("feature_matching"), f"{where} is not compared"


def _check_values(case: Case, where: str, values: Mapping[str, Tensor], expected: dict, images: Tensor) -> None:
    for name, number in expected.items():
        base = name.removesuffix("_grad_norm_wrt_fake")
        if base == name:
            case.check_value(f"{where}: {name}", values[name].item(), number)
        else:
            _check_gradient(case, f"{where}: {name}", values[base], [images], number)
