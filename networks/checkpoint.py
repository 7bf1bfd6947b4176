"""Reading and writing tokenizers: this project's checkpoint folders, the reference's files, and the names in both.

Weights have this project's own names. `to_reference_name` and `to_own_name` are the one table between them and the
reference's; the frozen encoder's weights are also renamed between transformers 5 (here) and 4.50 (there).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from common.checkpoint_folder import find_checkpoint
from common.config import Source, build
from common.errors import CheckpointError
from networks.config import TOKENIZER_RELATIONS, TokenizerConfig
from networks.encoders.loading import encoder_fingerprint, load_encoder
from networks.vfm_vae import VFMVAETokenizer

log = logging.getLogger(__name__)

# --- names -----------------------------------------------------------------------------------------------------
# Rows of (own, reference); {} stands for a number. What a row does not name (weight, bias) is the same in both.

Rows = list[tuple[str, str]]


def _below(own: str, reference: str, rows: Rows) -> Rows:
    return [(f"{own}.{a}" if a else own, f"{reference}.{b}" if b else reference) for a, b in rows]


PROJECTION: Rows = _below(
    "blocks.{}",
    "blocks.{}",
    [
        ("norm_attn", "norm1"),
        ("attn.qkv", "attn.qkv"),
        ("attn.q_bias", "attn.q_bias"),
        ("attn.k_bias", "attn.zero_k_bias"),
        ("attn.v_bias", "attn.v_bias"),
        ("attn.proj", "attn.proj"),
        ("norm_skip", "norm3"),
        ("skip", "proj"),
        ("norm_mlp", "norm2"),
        ("mlp.norm", "mlp.norm"),
        ("mlp.gate", "mlp.w0"),
        ("mlp.value", "mlp.w1"),
        ("mlp.out", "mlp.w2"),
    ],
)
CONVNEXT: Rows = [
    ("affine", "affine_pw1.proj"),
    ("depthwise", "dwconv"),
    ("norm", "norm"),
    ("expand_weight", "pwconv1.weight"),
    ("expand_bias", "pwconv1.bias"),
    ("project", "pwconv2"),
    ("gamma", "gamma"),
    ("noise", "noise_const"),
    ("noise_strength", "noise_strength"),
]
UPSAMPLER: Rows = [
    ("norm", "norm"),
    ("depthwise", "depthwise"),
    ("pointwise", "pointwise"),
    ("blur_kernel", "blur_weight"),
]
TO_RGB: Rows = [("affine", "affine.proj"), ("weight", "weight"), ("bias", "bias")]
SELF_ATTENTION: Rows = [
    ("attn.norm", "attn.norm"),
    ("attn.null_kv", "attn.null_kv"),
    *[(f"attn.{name}", f"attn.{name}") for name in ("to_q", "to_k", "to_v", "to_out")],
    ("ff_norm", "ff.0"),
    ("ff_in", "ff.1"),
    ("ff_out", "ff.3"),
]
MAPPING: Rows = [("mlp.{}", "mlp.fc{}"), ("x_avg", "x_avg")]
_WIDTH_PROJECTION: Rows = [*PROJECTION, ("weight", "weight"), ("bias", "bias")]  # attnproj, or conv
_BLOCK: Rows = [
    *_below("upsample", "seperate_upsample_conv", UPSAMPLER),
    *_below("skip_upsample", "last_upsample_conv", UPSAMPLER),
    *_below("layers.0", "conv0", CONVNEXT),
    *_below("layers.{+1}", "convs1.{}", CONVNEXT),
    *_below("attention.{}", "self_attns.{}", SELF_ATTENTION),
    *_below("to_rgb", "torgb", TO_RGB),
]
TOKENIZER: Rows = [
    *_below("compression.projections.{}", "ldm_adapter.patch_quants.{}.0", _WIDTH_PROJECTION),
    *_below("compression.head", "ldm_adapter.final_quant", _WIDTH_PROJECTION),
    ("alignment.projection", "ldm_adapter.linear_proj"),
    *_below("decoder.expansion.projection", "ldm_adapter.post_quant", _WIDTH_PROJECTION),
    *_below("decoder.mapping", "mapping", MAPPING),
    ("decoder.latent_branches.{}.{}.{}", "synthesis.z_convs.{}.{}.{}"),
    *_below("decoder.blocks.{}", "synthesis.blocks.{}", _BLOCK),
]
ENCODER_PREFIX = ("encoder.backbone.", "vfm_encoder.encoder.vision_model.")

# Encoder weights: (transformers 5, transformers 4.50), per family; a name that fits no row is the same in both.
ENCODER_RENAMES: dict[str, Rows] = {
    "siglip2": [(part, f"vision_model.{part}") for part in ("embeddings", "encoder.layers", "post_layernorm", "head")],
    "dinov2": [
        *[
            (f"encoder.layer.{{}}.attention.{a}_proj", f"encoder.layer.{{}}.attention.attention.{b}")
            for a, b in (("q", "query"), ("k", "key"), ("v", "value"))
        ],
        ("encoder.layer.{}.attention.o_proj", "encoder.layer.{}.attention.output.dense"),
    ],
}


def _pattern(template: str) -> re.Pattern:
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)").replace(r"\{\+1\}", r"(\d+)") + r"(?=\.|$)")


def _rename(name: str, rows: Rows, to_reference: bool) -> str | None:
    for own, reference in rows:
        source, target = (own, reference) if to_reference else (reference, own)
        match = _pattern(source).match(name)
        if match is None:
            continue
        numbers = [int(n) for n in match.groups()]
        if "{+1}" in own:  # the last number counts from 1 here and from 0 there
            numbers[-1] += -1 if to_reference else 1
        if min(numbers, default=0) < 0:
            continue
        filled = target.replace("{+1}", "{}").format(*numbers)
        return filled + name[match.end() :]
    return None


def to_reference_name(name: str, rows: Rows = TOKENIZER, family: str | None = None) -> str:
    """This project's name of a weight -> the reference's.

    Args:
        name: e.g. `decoder.blocks.0.to_rgb.weight`, or `encoder.backbone...` with the encoder's `family`.
        rows: the table; that of a single layer for names inside it.

    Raises: KeyError if the table has no row for it.
    """
    return _translate(name, rows, family, to_reference=True)


def to_own_name(name: str, rows: Rows = TOKENIZER, family: str | None = None) -> str:
    """The reference's name of a weight -> this project's; the inverse of `to_reference_name`."""
    return _translate(name, rows, family, to_reference=False)


def _translate(name: str, rows: Rows, family: str | None, to_reference: bool) -> str:
    source, target = ENCODER_PREFIX if to_reference else ENCODER_PREFIX[::-1]
    if name.startswith(source):
        inner = name.removeprefix(source)
        return target + (_rename(inner, ENCODER_RENAMES.get(family or "", []), to_reference) or inner)
    renamed = _rename(name, rows, to_reference)
    if renamed is None:
        raise KeyError(name)
    return renamed


# --- loading ---------------------------------------------------------------------------------------------------


def load_tokenizer(
    path: str | Path,
    config: TokenizerConfig | None = None,
    device: str | torch.device = "cpu",
    weights: Literal["ema", "raw"] = "ema",
) -> VFMVAETokenizer:
    """A tokenizer in eval mode, with its frozen encoder.

    Args:
        path: a checkpoint folder or run folder of this project, or a `.pth` of the reference.
        config: its shape; may be left out where the checkpoint carries it (folders do).
        weights: the EMA of the weights, or the weights themselves.

    Raises: CheckpointError if the file is missing, damaged or does not fit; UserError if the encoder cannot be loaded.
    """
    encoder_sha256 = None
    if Path(path).is_dir():
        path = find_checkpoint(path, log.warning)
        config = config or read_model_config(path)
        encoder_sha256 = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["encoder"]["sha256"]
    state = read_weights(path, weights)
    if config is None:
        raise CheckpointError(f"{path}: a reference checkpoint carries no configuration; give one (--use-config).")
    model = build_tokenizer(config, state, str(path))
    if encoder_sha256 is not None:
        require_same_encoder(encoder_fingerprint(model.encoder), encoder_sha256, str(path))
    return model.to(device)


def require_same_encoder(found: str, recorded: str, where: str) -> None:
    """Refuse an encoder with other weights than the one that a checkpoint was trained on.

    Args:
        found: fingerprint of the encoder at hand.
        recorded: fingerprint that the checkpoint carries.

    Raises: CheckpointError if they differ.
    """
    if found != recorded:
        raise CheckpointError(
            f"{where}: was trained on an encoder with the fingerprint {recorded[:12]}..., but the one that "
            f"encoder.vfm_name gives now has {found[:12]}...; point vfm_name to the same weights."
        )


def read_weights(path: str | Path, weights: Literal["ema", "raw"] = "ema") -> dict[str, Tensor]:
    """Weights by own names from a checkpoint folder, a run folder or a reference `.pth`.

    Raises: CheckpointError if there is none, or it is damaged.
    """
    if Path(path).is_dir():
        folder = find_checkpoint(path, log.warning)
        return load_file(folder / ("model.safetensors" if weights == "ema" else "model_raw.safetensors"))
    return read_reference_weights(path, weights)


def build_tokenizer(config: TokenizerConfig, state: Mapping[str, Tensor], where: str) -> VFMVAETokenizer:
    """A tokenizer with these weights (own names; an encoder among them replaces the one on disk).

    Raises: CheckpointError that names missing, unexpected or misshapen weights.
    """
    has_noise = has_noise_maps(state)
    if config.decoder.legacy is not None and config.decoder.legacy != has_noise:
        raise CheckpointError(
            f"{where}: decoder.legacy is {str(config.decoder.legacy).lower()}, but the file "
            f"{'has' if has_noise else 'has no'} noise maps; set it to {str(has_noise).lower()} or null."
        )
    model = VFMVAETokenizer(config, load_encoder(config.encoder), noise=has_noise)
    load_weights(model, state, where)
    return model.eval()


def has_noise_maps(state: Mapping[str, Tensor]) -> bool:
    """Whether weights (own names) are of the `legacy` kind, with fixed noise maps in the decoder's layers."""
    return any(name.endswith(".noise_strength") for name in state)


def load_weights(model: VFMVAETokenizer, state: Mapping[str, Tensor], where: str) -> None:
    """Copy weights by own names into a tokenizer.

    The alignment head may be absent or left over, for only the VF loss uses it; everything else must fit exactly.

    Raises: CheckpointError that names missing, unexpected or misshapen weights.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    given = {name: value for name, value in state.items() if not name.startswith("encoder.")}
    missing = [name for name in own if name not in given and not name.startswith("alignment.")]
    unexpected = [name for name in given if name not in own and not name.startswith("alignment.")]
    shapes = [
        f"{name} is {list(given[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    problems = [
        f"{len(found)} {kind}, e.g. {found[0]}"
        for kind, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise CheckpointError(f"{where}: the weights do not fit the configuration: {'; '.join(problems)}.")
    model.load_state_dict({name: value for name, value in given.items() if name in own}, strict=False)
    encoder = {n.removeprefix("encoder."): value for n, value in state.items() if n.startswith("encoder.")}
    if encoder and model.encoder is not None:
        model.encoder.load_state_dict(encoder, strict=True)


def read_model_config(folder: Path) -> TokenizerConfig:
    """The tokenizer's configuration that a checkpoint folder carries. Raises ConfigError if it is not valid."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("model_type", None)
    return build(TokenizerConfig, Source(str(path), values), TOKENIZER_RELATIONS)


def read_reference_weights(path: str | Path, weights: Literal["ema", "raw"] = "ema") -> dict[str, Tensor]:
    """Weights of a reference `.pth` under own names, without the frozen encoder, which is loaded from its own folder.

    Raises: CheckpointError if the file is missing, would execute code, or holds names that no table knows.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint folder or a reference .pth.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or refused file
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: cannot be read as tensors only ({first_line}); it is never unpickled."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: found {type(content).__name__}, expected a dictionary of tensors.")
    first, second = ("G_ema", "G") if weights == "ema" else ("G", "G_ema")
    state = content.get(first, content.get(second, content))
    dropped = [name for name in state if name.startswith(ENCODER_PREFIX[1])]
    if dropped:
        log.info(
            "%s: left out %d weights of the frozen encoder, which is loaded from its own files.", path, len(dropped)
        )
    try:
        return {to_own_name(name): value for name, value in state.items() if not name.startswith(ENCODER_PREFIX[1])}
    except KeyError as error:
        raise CheckpointError(f"{path}: weight {error} is not one of the reference's generator.") from error
