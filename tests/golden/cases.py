"""Golden cases: numbers measured on the reference, found by glob, compared by the tolerance that they state."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent

KINDS = (
    "networks_tiny",
    "networks_units",
    "networks_vfm",
    "training_data",
    "training_diffaug",
    "training_disc_head",
    "training_ema",
    "training_equivariance",
    "training_latent_losses",
    "training_lpips",
    "training_patchgan",
    "training_pixel_losses",
    "training_safe_loss",
    "training_stylegan_t_disc",
    "training_total_loss",
    "training_trajectory",
    "training_warmup",
    "tools_cknna",
    "tools_generation_metrics",
    "tools_io",
    "tools_latent_stats",
    "tools_psnr_ssim",
    "tools_se_cknna",
    "tools_transforms",
    "diffusion_latent_dataset",
    "diffusion_lightningdit_cfg",
    "diffusion_lightningdit_forward",
    "diffusion_lightningdit_loss",
    "diffusion_lightningdit_ode",
    "diffusion_reg_forward",
    "diffusion_reg_loss",
    "diffusion_reg_ode",
    "diffusion_reg_sde",
    "diffusion_transport",
    "vfmtok_decode_transformer",
    "vfmtok_deform_encoder",
    "vfmtok_dino_disc",
    "vfmtok_gpt",
    "vfmtok_losses",
    "vfmtok_msda",
    "vfmtok_pixel_decoder",
    "vfmtok_preprocess",
    "vfmtok_quantizer_l2",
    "vfmtok_quantizer_plain",
    "vfmtok_sampling",
    "vfmtok_tokenizer",
)


@dataclass
class Case:
    """One golden case, or one unit of a case that holds several."""

    path: Path
    kind: str
    unit: str | None = None
    compared: int = field(default=0, init=False)
    checked: set[str] = field(default_factory=set, init=False)

    @property
    def name(self) -> str:
        return self.path.stem if self.unit is None else f"{self.path.stem}/{self.unit}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The case's json; of a unit, its own entry."""
        facts = json.loads(self.path.read_text(encoding="utf-8"))
        return facts if self.unit is None else facts["units"][self.unit]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors; of a unit, its own, without its prefix."""
        path = self.path.with_suffix(".safetensors")
        tensors = load_file(path) if path.exists() else {}
        prefix = f"{self.unit}/"
        return (
            tensors
            if self.unit is None
            else {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )

    def check(self, name: str, found: Tensor, reference: Tensor | None = None) -> None:
        """Compare a tensor with the stored one: max |difference| <= tolerance * max(1, max |reference|).

        Integers must be equal.
        """
        reference = self.tensors[name] if reference is None else reference
        assert found.shape == reference.shape, f"{name}: {tuple(found.shape)} instead of {tuple(reference.shape)}"
        stated = self.facts.get("tolerance")
        common = stated if isinstance(stated, float | int) else 1e-5
        tolerance = self.facts.get("tolerance_overrides", {}).get(name, common)
        limit = tolerance * max(1.0, reference.abs().max().item()) if reference.is_floating_point() else 0
        difference = (found.detach().double() - reference.double()).abs().max().item()
        assert difference <= limit, f"{name}: differs by {difference:.3g}, allowed {limit:.3g}"
        self.compared += 1
        self.checked.add(name)

    def check_value(self, name: str, found: float, reference: float, tolerance: float = 1e-5) -> None:
        """Compare a number: |difference| <= tolerance * max(1, |reference|)."""
        assert math.isclose(found, reference, rel_tol=0, abs_tol=tolerance * max(1.0, abs(reference))), (
            f"{name}: found {found!r}, expected {reference!r}"
        )
        self.compared += 1


def collect(folder: Path) -> list[Case]:
    """All cases of a folder; a case's kind is the longest one that its name starts with."""
    cases = []
    for path in sorted(folder.glob("*.json")):
        kinds = [kind for kind in KINDS if path.stem.startswith(kind)]
        kind = max(kinds, key=len) if kinds else "unknown"
        if kind == "networks_units":
            units = json.loads(path.read_text(encoding="utf-8"))["units"]
            cases += [Case(path, kind, unit) for unit in units]
        else:
            cases.append(Case(path, kind))
    return cases


# Buffers with the values that their constructor gives; the fill rule leaves them alone.
FIXED_BUFFERS = ("blur_kernel", "resample_kernel", "k_bias", "usage")

# --- weights by the fill rule ------------------------------------------------------------------------------------


def fill(key: str, shape: list[int]) -> Tensor:
    """A weight that is a function of its reference name: N(0, 1) seeded by the CRC-32 of the name, then scaled."""
    r = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    parts = key.split(".")
    last = parts[-1]
    if key.startswith("mapping."):
        if last == "weight":
            return 100 * r
        if last == "bias":
            return 10 * r
    if "affine" in parts or "affine_pw1" in parts:
        if last == "weight":
            return r
        if last == "bias":
            return 1 + 0.1 * r
    if last == "gamma":
        return 0.5 + 0.1 * r
    if len(shape) >= 2:
        return r / math.prod(shape[1:]) ** 0.5
    if len(shape) == 1 and last == "weight":
        return 1 + 0.1 * r
    return 0.1 * r


def filled_state(entries: list[list]) -> dict[str, Tensor]:
    """Weights of all entries [key, shape, dtype, filled] that the rule fills, by reference name."""
    return {key: fill(key, shape) for key, shape, _, filled in entries if filled}


def load_filled(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights by own names; everything but constructor-given buffers must be among them."""
    result = module.load_state_dict(state, strict=False)
    assert not result.unexpected_keys, result.unexpected_keys
    kept = [name for name in result.missing_keys if name.rsplit(".", 1)[-1] not in FIXED_BUFFERS]
    assert not kept, f"not filled: {kept}"
