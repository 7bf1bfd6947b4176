"""How the case of VFMTok's projected discriminator is compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.value_range import unit_to_signed
from networks.checkpoint.names import VFMTOK_DISCRIMINATOR, to_reference_name
from networks.config import DiscriminatorConfig
from networks.discriminators.backbone import DINO_MODEL, BackboneKind, TappedViT
from networks.discriminators.discriminators import Discriminators
from networks.discriminators.heads import KERNEL_SIZE
from networks.discriminators.projected import PROJECTED_KINDS
from tests.golden.cases import Case, fill

CONFIG = DiscriminatorConfig(use_stylegan_t_discriminator=True, projected_kind="vfmtok", diffaug=False)
HEAD_PREFIX = "projected.heads."


def check_vfmtok_discriminator(case: Case) -> None:
    """What the heads read, logits before and in the first training pass, the input's gradient, the spectral norms."""
    model = _model(case)
    images = _images(case.facts["input"]).requires_grad_()
    read: list[Tensor] = []
    hooks = [
        head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))
        for head in model.projected.heads
    ]
    logits = model(images).projected
    for hook in hooks:
        hook.remove()
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    found = {f"act_{i}": x for i, x in enumerate(read)}
    found |= {"logits_eval": logits, "grad_input_sub": gradient[..., ::8, ::8]}
    with torch.no_grad():
        found["logits_train_first_call"] = model(images, update_norms=True).projected
    for name, value in model.state_dict().items():
        if name.startswith(HEAD_PREFIX):
            found[f"after_train/{to_reference_name(name, VFMTOK_DISCRIMINATOR)}"] = value
    # In its own words: 1e-4 of the largest reference value, where a common tolerance would be 1e-5.
    assert case.facts["tolerances"].startswith("grad_input_sub 1e-4 * max|reference|")
    case.facts["tolerance_overrides"] = {"grad_input_sub": 1e-4}
    for name, reference in case.tensors.items():
        assert name in found, f"{case.name}: the stored tensor {name!r} has no counterpart"
        value = found[name][..., : reference.shape[-1]] if name.startswith("act_") else found[name]
        case.check(name, value)


def _model(case: Case) -> Discriminators:
    """The discriminator of the case's sizes, with the weights of the fill rule."""
    kwargs = case.facts["kwargs"]
    vit, kind = kwargs["vit"], PROJECTED_KINDS["vfmtok"]
    assert (vit["gelu"], kwargs["kernel_size"]) == ("tanh", KERNEL_SIZE)
    options = {"img_size": vit["img_size"], "patch_size": vit["patch"]}
    options |= {name: vit[name] for name in ("embed_dim", "num_heads", "depth")}
    backbone = TappedViT(BackboneKind(DINO_MODEL, tuple(kwargs["key_depths"]), options), kind.gelu)
    assert {block.norm1.eps for block in backbone.vit.blocks} == {vit["ln_eps"]}
    listed = {name: entry for name, entry in case.facts["state_dict_frozen_vit"].items() if not name.startswith("x_")}
    _require_listed(backbone.vit.state_dict(), {name: name for name in listed}, listed)
    backbone.vit.load_state_dict({name: fill(name, shape) for name, (shape, _) in listed.items()})

    model = Discriminators(CONFIG, "bilinear", backbone)
    heads = {name: value for name, value in model.state_dict().items() if name.startswith(HEAD_PREFIX)}
    names = {name: to_reference_name(name, VFMTOK_DISCRIMINATOR) for name in heads}
    _require_listed(heads, names, case.facts["state_dict_heads"])
    state = {name: fill(names[name], list(value.shape)) for name, value in heads.items()}
    for name in state:
        if name.endswith(("weight_u", "weight_v")):
            state[name] = F.normalize(state[name], dim=0, eps=1e-12)
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    return model


def _require_listed(state: Mapping[str, Tensor], names: Mapping[str, str], listed: Mapping[str, Any]) -> None:
    """The reference's names and shapes are exactly those that the case lists."""
    found = {names[name]: list(value.shape) for name, value in state.items()}
    assert found == {name: shape for name, (shape, _) in listed.items()}


def _images(text: str) -> Tensor:
    """Images as the case words them: `x = 2*torch.rand(4,3,256,256, generator=Generator(1234))-1`."""
    shape, seed = re.search(r"2\*torch\.rand\(([\d,]+), generator=Generator\((\d+)\)\)-1", text).groups()
    sides = [int(n) for n in shape.split(",")]
    return unit_to_signed(torch.rand(sides, generator=torch.Generator().manual_seed(int(seed))))
