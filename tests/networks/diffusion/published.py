"""The published networks: what their state dicts hold, and the networks themselves without memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from networks.diffusion.config import LightningDiTConfig, REGSiTConfig
from networks.diffusion.lightningdit import LightningDiT
from networks.diffusion.reg_sit import REGSiT
from networks.diffusion.transformer import DiffusionTransformer

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "reference_diffusion.json").read_text(encoding="utf-8"))


def on_meta(model_type: str, **changes) -> DiffusionTransformer:
    """A network of a named size, without memory for its weights."""
    with torch.device("meta"):
        if model_type.startswith("Lightning"):
            return LightningDiT(LightningDiTConfig(model_type=model_type, **changes))
        return REGSiT(REGSiTConfig(model_type=model_type, **changes))


def expand(facts: dict) -> dict[str, tuple[str, list[int]]]:
    """The listed entries as name -> (kind, shape), `blocks.*` written out."""
    first, block, last = {}, {}, {}
    for name, entry in facts["entries"].items():
        kind, shape = entry if isinstance(entry[0], str) else ("parameter", entry)
        (block if name.startswith("blocks.*.") else last if block else first)[name] = (kind, shape)
    blocks = {
        name.replace("*", str(number)): entry for number in range(facts["blocks"]) for name, entry in block.items()
    }
    return {**first, **blocks, **last}
