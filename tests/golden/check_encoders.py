"""How the cases of the encoder families are compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from common.registry import import_object
from networks.checkpoint import to_own_name, to_reference_name
from networks.encoders import FAMILIES
from networks.encoders.base import VisionEncoder
from networks.encoders.qwen2_5_vl import Qwen25VLEncoder
from tests.golden.cases import Case, filled_state, load_filled

TENSOR = re.compile(
    r"(?P<what>feature|raster|upstream_raw|pooled)"
    r"(_eq(?P<input_scale>[\d.]+)|_interp(?P<scale_factor>[\d.]+)x)?(_(?P<layer>-?\d+))?"
)


def backbone_options(vfm: dict[str, Any]) -> dict[str, Any]:
    """The options that a case states for its backbone."""
    return next(vfm[key] for key in ("config", "timm_kwargs", "vision_config") if key in vfm)


def build_encoder(vfm: dict[str, Any], layers: list[int], scale_factor: float) -> VisionEncoder:
    """An encoder of any family with random weights, from the options that a case states."""
    encoder_class = import_object(FAMILIES[vfm["family"]].target)
    return encoder_class(_backbone(vfm), layers, scale_factor)


def _backbone(vfm: dict[str, Any]) -> nn.Module:
    import transformers

    options = backbone_options(vfm)
    if "timm_kwargs" in vfm:
        module, _, name = vfm["timm_class"].rpartition(".")
        return import_object(f"{module}:{name}")(**options)
    if "vision_config" in vfm:
        tower = transformers.Qwen2_5_VisionTransformerPretrainedModel
        return tower(tower.config_class(**options))
    config = getattr(transformers, vfm["config_class"])(**options)
    return getattr(transformers, vfm["transformers_class"])(config)


@torch.no_grad()
def check_encoder(case: Case) -> None:
    """Hidden states, pooled output and what leads to them, of one family."""
    vfm, images = case.facts["vfm"], case.tensors["img"]
    named = {name: match.groupdict() for name in case.tensors if (match := TENSOR.fullmatch(name))}
    layers = sorted({int(parts["layer"]) for parts in named.values() if parts["layer"]})
    encoder = build_encoder(vfm, layers, case.facts.get("scale_factor", 1.0))
    _load(case, encoder)
    checks: dict[str, Callable[[], Tensor]] = {
        name: lambda parts=parts: _found(encoder, images, parts, case.facts.get("scale_factor", 1.0))
        for name, parts in named.items()
    }
    if isinstance(encoder, Qwen25VLEncoder):
        checks |= _qwen_checks(encoder, images, list(case.tensors))
    for name in case.tensors:
        if name != "img":
            assert name in checks, f"{case.name}: the stored tensor {name!r} has no counterpart"
            case.check(name, checks[name]())


def _load(case: Case, encoder: VisionEncoder) -> None:
    """Fill the weights by their reference names, which must be exactly those of the encoder."""
    family = case.facts["vfm"]["family"]
    own = {f"encoder.{name}" for name in encoder.state_dict()}
    assert {to_reference_name(name, family=family) for name in own} == {key for key, *_ in case.facts["state_dict"]}
    state = {to_own_name(key, family=family): value for key, value in filled_state(case.facts["state_dict"]).items()}
    load_filled(encoder, {name.removeprefix("encoder."): value for name, value in state.items()})


def _found(encoder: VisionEncoder, images: Tensor, parts: dict[str, str | None], scale_factor: float) -> Tensor:
    encoder.scale_factor = float(parts["scale_factor"] or scale_factor)
    input_scale = float(parts["input_scale"] or 1.0)
    if parts["what"] == "pooled":
        return encoder.pooled(images, input_scale)
    features = encoder(images, input_scale)
    layer = int(parts["layer"] or 0)
    position = encoder.layers.index(layer)
    level = features.levels[position]
    if parts["what"] == "upstream_raw" and layer != -1:
        return _in_tower_order(encoder, level, features.grids[position], in_windows=layer != 0)
    return level


def _in_tower_order(encoder: Qwen25VLEncoder, level: Tensor, grid: tuple[int, int], in_windows: bool) -> Tensor:
    """Row-major tokens [B, N, D] in the order of the tower, [B*N, D]: group by group, of each window if asked for."""
    groups = rearrange(
        level,
        "b (gh mh gw mw) d -> (b gh gw) (mh mw) d",
        gh=grid[0] // encoder.merge,
        mh=encoder.merge,
        mw=encoder.merge,
    )
    return (groups[_window_index(encoder, len(level), grid)] if in_windows else groups).flatten(0, 1)


def _window_index(encoder: Qwen25VLEncoder, batch: int, grid: tuple[int, int]) -> Tensor:
    order, _ = encoder.order(grid)
    return torch.cat([order + number * len(order) for number in range(batch)])


def _qwen_checks(encoder: Qwen25VLEncoder, images: Tensor, names: list[str]) -> dict[str, Callable[[], Tensor]]:
    pixels = encoder.preprocess(images)
    grid = (pixels.shape[2] // encoder.patch_size, pixels.shape[3] // encoder.patch_size)
    checks = {"window_index": lambda: _window_index(encoder, len(images), grid)}
    for name in names:
        if match := re.fullmatch(r"pixel_patches_first(\d+)", name):
            checks[name] = lambda count=int(match[1]): encoder.patches(pixels)[:, :count]
    return checks
