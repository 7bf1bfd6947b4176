"""How the cases of the diffusion transformers are compared."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from networks.diffusion.config import LightningDiTConfig, REGSiTConfig
from networks.diffusion.embeddings import time_features
from networks.diffusion.guidance import Guidance, guided_velocity
from networks.diffusion.lightningdit import LightningDiT
from networks.diffusion.reg_sit import REGSiT
from networks.diffusion.transformer import DiffusionTransformer
from tests.golden.cases import Case, fill

LIGHTNINGDIT_DEFAULTS = {
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 32,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "use_qknorm": False,
    "use_swiglu": False,
    "use_rope": False,
    "use_rmsnorm": False,
}
REG_DEFAULTS = {
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "qk_norm": False,
}
UNUSED_BY_REG = ("path_type", "decoder_hidden_size", "use_cfg", "cls_token_dim", "fused_attn")
CONSTRUCTED = ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")  # the fill rule leaves them alone

CFG_CHANNELS = 3  # that the reference's LightningDiT guides


def filled_lightningdit(kwargs: dict, entries: dict | None = None) -> LightningDiT:
    """The network of a case, in eval mode, with weights by the fill rule."""
    return _filled(LightningDiT(LightningDiTConfig(**{**LIGHTNINGDIT_DEFAULTS, **kwargs})), entries)


def filled_reg(kwargs: dict, entries: dict | None = None) -> REGSiT:
    """The network of a case, in eval mode, with weights by the fill rule."""
    given = {name: value for name, value in kwargs.items() if name not in UNUSED_BY_REG}
    return _filled(REGSiT(REGSiTConfig(**{**REG_DEFAULTS, **given})), entries)


def _filled(network: DiffusionTransformer, entries: dict | None) -> DiffusionTransformer:
    """With weights by the fill rule; its state dict must have the listed names and shapes, in their order."""
    own = network.state_dict()
    if entries is not None:
        listed = [(name, entry["shape"]) for name, entry in entries.items()]
        assert [(name, list(value.shape)) for name, value in own.items()] == listed
    network.load_state_dict(
        {name: value if name in CONSTRUCTED else fill(name, list(value.shape)) for name, value in own.items()}
    )
    return network.eval()


def _check_stored(case: Case, unit: str, computed: dict[str, Tensor]) -> None:
    """Compare everything that is stored for a unit; each tensor must be among the computed ones."""
    stored = [name for name in case.tensors if name.startswith(f"{unit}.")]
    assert stored, f"{unit}: nothing is stored for it"
    for name in stored:
        case.check(name, computed[name.removeprefix(f"{unit}.")])


def _require_all_checked(case: Case) -> None:
    left = {name for name in case.tensors if not name.startswith("in.")} - case.checked
    assert not left, f"stored, but not compared: {sorted(left)}"


def check_lightningdit_forward(case: Case) -> None:
    """All flag sets: output, positions and the values on the way."""
    x, t, y = (case.tensors[f"in.{name}"] for name in "xty")
    for unit, facts in case.facts["cases"].items():
        network = filled_lightningdit(facts["kwargs"], facts["state_dict"])
        with torch.no_grad():
            computed = {
                "out": network(x, t, y),
                "pos_embed": network.pos_embed,
                "t_freq": time_features(t),
                "t_emb": network.t_embedder(t),
                "c": network.condition(t, y),
                **_layers(network.features(x, 1 - t, y)),
            }
            torch.testing.assert_close(network.velocity(x, 1 - t, y), -computed["out"])
        if network.feat_rope is not None:
            computed |= {"rope_cos": network.feat_rope.freqs_cos, "rope_sin": network.feat_rope.freqs_sin}
        _check_stored(case, unit, computed)
    _require_all_checked(case)


def _layers(features) -> dict[str, Tensor]:
    """Features by the names that the cases give them."""
    return {re.sub("^embedder$", "tokens", name).replace("_", ""): tokens for name, tokens in features}


def check_lightningdit_cfg(case: Case) -> None:
    """Guidance below, at and above the start of its interval, and both velocities that it combines."""
    network = filled_lightningdit(case.facts["kwargs"], case.facts.get("state_dict"))
    x, y = case.tensors["in.x"], case.tensors["in.y"]
    null = torch.full_like(y, network.null_label)
    guidance = Guidance(_stated(case, "cfg_scale"), CFG_CHANNELS, high=1 - _stated(case, "cfg_interval_start"))
    times = sorted({name.partition(".t")[2] for name in case.tensors if name.startswith("out.t")})
    for time in times:
        t = torch.full((len(x),), float(time))
        with torch.no_grad():
            conditional, unconditional = network(x, t, y), network(x, t, null)
            guided = -guided_velocity(network.velocity, x, 1 - float(time), y, network.null_label, guidance)
        case.check(f"cond.t{time}", conditional)
        case.check(f"uncond.t{time}", unconditional)
        # The reference hands out both halves: the guided channels are the same, the others each half's own.
        second = torch.cat([guided[:, :CFG_CHANNELS], unconditional[:, CFG_CHANNELS:]], dim=1)
        case.check(f"out.t{time}", torch.cat([guided, second]))
    _require_all_checked(case)


def _stated(case: Case, name: str) -> float:
    """A number that a case gives in its words, as `name=number`."""
    found = re.search(rf"\b{name}=([\d.]*\d)", case.facts["what"])
    assert found, f"{case.name}: does not say its {name}"
    return float(found[1])


def _block_outputs(network: REGSiT, tokens: Tensor, c: Tensor) -> dict[str, Tensor]:
    """All tokens after each block; `features` leaves the class token out."""
    outputs = {}
    for number, block in enumerate(network.blocks):
        tokens = outputs[f"block{number}"] = block(tokens, c)
    return outputs


def check_reg_forward(case: Case) -> None:
    """All settings: velocities, projections, positions and the values on the way."""
    x, t, y, cls_token = (case.tensors[f"in.{name}"] for name in ("x", "t", "y", "cls"))
    for unit, facts in case.facts["cases"].items():
        network = filled_reg(facts["kwargs"], facts["state_dict"])
        with torch.no_grad():
            output = network(x, t, y, cls_token)
            tokens = network.embed(x, cls_token)
            c = network.condition(t, y)
            computed = {
                "v": output.latent,
                "cls_v": output.class_token,
                **{f"zs{i}": projected for i, projected in enumerate(output.projections)},
                "tokens": tokens,
                "c": c,
                "pos_embed": network.pos_embed,
                **_block_outputs(network, tokens, c),
            }
            sampled = network.velocity(x, t, y, cls_token)
        assert torch.equal(sampled.latent, output.latent) and torch.equal(sampled.class_token, output.class_token)
        _check_stored(case, unit, computed)
    _require_all_checked(case)
