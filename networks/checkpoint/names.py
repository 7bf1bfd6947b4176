"""The names of weights: this project's own, and the reference's.

`to_reference_name` and `to_own_name` are the one table between them; the frozen encoder's weights are also renamed
between transformers 5 (here) and 4.50 (there), by the `reference_names` of its family.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from common.registry import import_object
from networks.encoders import FAMILIES

# Rows of (own, reference); {} stands for a number. What a row does not name (weight, bias) is the same in both.

Rows = Sequence[tuple[str, str]]


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
MODULATED_CONV: Rows = [
    ("style_affine", "affine.proj"),
    ("weight", "weight"),
    ("bias", "bias"),
    ("noise", "noise_const"),
    ("noise_strength", "noise_strength"),
    ("resample_kernel", "resample_filter"),
    ("norm", "norm"),
    ("gamma", "gamma"),
]
UPSAMPLER: Rows = [
    ("norm", "norm"),
    ("depthwise", "depthwise"),
    ("pointwise", "pointwise"),
    ("blur_kernel", "blur_weight"),
]
TO_RGB: Rows = [("affine", "affine.proj"), ("weight", "weight"), ("bias", "bias")]
_ATTENTION = ("norm", "norm_context", "null_kv", "to_q", "to_k", "to_v", "to_kv", "to_out")
ATTENTION: Rows = [  # self- and cross-attention
    *[(f"attn.{name}", f"attn.{name}") for name in _ATTENTION],
    ("ff_norm", "ff.0"),
    ("ff_in", "ff.1"),
    ("ff_out", "ff.3"),
]
QUANTIZER: Rows = [
    ("codebooks.{}.codes", "codebooks.{}.codebook.weight"),
    ("codebooks.{}.usage", "codebooks.{}.vocab_usage"),
]
MAPPING: Rows = [("mlp.{}", "mlp.fc{}"), ("embed", "embed"), ("x_avg", "x_avg")]
_WIDTH_PROJECTION: Rows = [*PROJECTION, ("weight", "weight"), ("bias", "bias")]  # attnproj, or conv
_LAYER: Rows = [*CONVNEXT, *MODULATED_CONV]  # what both have has one name in both
_BLOCK: Rows = [
    *_below("upsample", "seperate_upsample_conv", UPSAMPLER),
    *_below("skip_upsample", "last_upsample_conv", UPSAMPLER),
    *_below("layers.0", "conv0", _LAYER),
    *_below("layers.{+1}", "convs1.{}", _LAYER),
    ("resample_kernel", "resample_filter"),
    *_below("attention.{}", "self_attns.{}", ATTENTION),
    *_below("cross_attention.{}", "cross_attns.{}", ATTENTION),
    *_below("to_rgb", "torgb", TO_RGB),
]
TOKENIZER: Rows = [
    *_below("compression.projections.{}", "ldm_adapter.patch_quants.{}.0", _WIDTH_PROJECTION),
    *_below("compression.head", "ldm_adapter.final_quant", _WIDTH_PROJECTION),
    *_below("quantizer", "ldm_adapter.quantizer", QUANTIZER),
    ("alignment.projection", "ldm_adapter.linear_proj"),
    *_below("decoder.expansion.projection", "ldm_adapter.post_quant", _WIDTH_PROJECTION),
    *_below("decoder.mapping", "mapping", MAPPING),
    ("decoder.latent_branches.{}.{}.{}", "synthesis.z_convs.{}.{}.{}"),
    *_below("decoder.blocks.{}", "synthesis.blocks.{}", _BLOCK),
]
ENCODER = "encoder."  # the frozen encoder's part of a tokenizer
ENCODER_PREFIX = (f"{ENCODER}backbone.", "vfm_encoder.encoder.vision_model.")
REFERENCE_FAMILIES = ("siglip2", "dinov2", "mae", "eva", "qwen")  # encoders that the reference has, too

HEAD: Rows = [
    ("first.conv", "main.0.0"),
    ("first.norm", "main.0.1"),
    ("residual.conv", "main.1.fn.0"),
    ("residual.norm", "main.1.fn.1"),
    ("logits", "cls"),
    ("label", "cmapper"),
]
# The reference counts the scales of the PatchGAN from the smallest one; here 0 is the full image. It names the layers
# of one network in one way where it hands out their outputs, and in another where it does not.
_SCALES = ((0, 2), (1, 1), (2, 0))
PATCHGAN_FEATURES: Rows = [
    (f"scales.{scale}.layers.{{}}.{own}", f"scale{number}_layer{{}}.{part}")
    for scale, number in _SCALES
    for own, part in (("conv", 0), ("norm", 1))
]
PATCHGAN_FLAT: Rows = [
    (f"scales.{scale}.layers.{layer}.{own}", f"layer{number}.{position}")
    for scale, number in _SCALES
    for layer, own, position in (
        *((layer, "conv", (0, 2, 5, 8, 11)[layer]) for layer in range(5)),
        *((layer, "norm", (3, 6, 9)[layer - 1]) for layer in range(1, 4)),
    )
]
PROJECTED: Rows = [
    ("projected.backbone.vit", "dino.model.model"),
    *_below("projected.heads.{}", "heads.{}", HEAD),
]
# VFMTok's file of its tokenizer holds the heads of its projected discriminator alone, the embedding's first.
VFMTOK_HEAD: Rows = [
    ("first.conv", "0.0"),
    ("first.norm", "0.1"),
    ("residual.conv", "1.fn.0"),
    ("residual.norm", "1.fn.1"),
    ("logits", "2"),
]
VFMTOK_DISCRIMINATOR: Rows = _below("projected.heads.{}", "heads.{}", VFMTOK_HEAD)

# --- VFMTok ------------------------------------------------------------------------------------------------------

DEFORMABLE_ATTENTION: Rows = [
    ("offsets", "sampling_offsets"),
    ("weights", "attention_weights"),
    ("value", "value_proj"),
    ("output", "output_proj"),
]
CAUSAL_ATTENTION: Rows = [(name, f"{name[0]}_proj") for name in ("query", "key", "value")] + [("output", "out_proj")]
REGION_LAYERS: Rows = [
    *_below("{}.cross_attention", "layers.{}.cross_attn", DEFORMABLE_ATTENTION),
    *_below("{}.self_attention", "layers.{}.self_attn", CAUSAL_ATTENTION),
    ("{}.cross_norm", "layers.{}.norm1"),
    ("{}.self_norm", "layers.{}.norm3"),
    ("{}.expand", "layers.{}.linear1"),
    ("{}.project", "layers.{}.linear2"),
    ("{}.feed_forward_norm", "layers.{}.norm2"),
]
DECODE_TRANSFORMER: Rows = [
    ("positions", "position_embedding"),
    ("region_positions", "slot_position_embedding"),
    ("pixel_mask", "mask_embedding"),
    ("feature_mask", "mask_dino"),
    ("class_token", "cls_token"),
    ("registers", "register_tokens"),
    *_below(
        "blocks.{}",
        "transformer.layers.{}",
        [
            ("attention_norm", "norm1"),
            *_below("attention", "attn1", CAUSAL_ATTENTION),
            ("feed_forward_norm", "norm2"),
            ("feed_forward", "ffnet"),
        ],
    ),
    ("norm", "norm_post1"),
    ("feature_norm", "norm_post2"),
    ("to_features", "proj"),
]
_RESIDUAL: Rows = [
    *((name, name) for name in ("norm1", "conv1", "norm2", "conv2")),
    ("shortcut", "nin_shortcut"),
]
_SPATIAL_ATTENTION: Rows = [("norm", "norm"), ("query", "q"), ("key", "k"), ("value", "v"), ("output", "proj_out")]
PIXEL_DECODER: Rows = [
    ("conv_in", "conv_in"),
    *_below("middle.{}", "mid.{}", [*_RESIDUAL, *_SPATIAL_ATTENTION]),
    *_below("stages.{}.blocks.{}", "conv_blocks.{}.res.{}", _RESIDUAL),
    ("stages.{}.upsample", "conv_blocks.{}.upsample.conv"),
    ("norm_out", "norm_out"),
    ("conv_out", "conv_out"),
]
VFMTOK: Rows = [
    ("region_encoder.queries", "encode_transformer.carrier_tokens"),
    ("region_encoder.positions", "encode_transformer.slots_pos"),
    ("region_encoder.query_norm", "encode_transformer.norm_pre1"),
    *_below(
        "region_encoder.projections.{}",
        "encode_transformer.projectors.{}.mlp",
        [("first", "0"), ("first_norm", "1"), ("second", "3"), ("second_norm", "4")],
    ),
    ("region_encoder.projections.{}.norm", "encode_transformer.norm_layers.{}"),
    *_below("region_encoder.layers", "encode_transformer.transformer", REGION_LAYERS),
    ("to_code", "pre_slots_quant"),
    ("quantizer.codebooks.0.codes", "slot_quantize.embedding.weight"),
    ("decoder.from_code", "post_slots_quant"),
    *_below("decoder.transformer", "decode_transformer", DECODE_TRANSFORMER),
    *_below("decoder.pixels", "decoder", PIXEL_DECODER),
]
# VFMTok's frozen encoder comes from its own files, and how often codes were used is measured anew.
LEFT_OUT = re.compile(r"^encode_transformer\.backbone\.|^slot_quantize\.codebook_used$")


def discriminator_rows(keep_features: bool) -> Rows:
    """The table for discriminators whose PatchGAN hands out (or not) its intermediate features."""
    patchgan = PATCHGAN_FEATURES if keep_features else PATCHGAN_FLAT
    return [*PROJECTED, *_below("patchgan", "patchgan_discriminator", patchgan)]


@cache
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
        rows = import_object(FAMILIES[family].target).reference_names if family else ()
        return target + (_rename(inner, rows, to_reference) or inner)
    renamed = _rename(name, rows, to_reference)
    if renamed is None:
        raise KeyError(name)
    return renamed
