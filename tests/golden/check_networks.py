"""How the cases of the networks are compared."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import torch
from torch import Tensor

from losses.config import EntropyTermConfig, VQTermConfig
from losses.entropy import EntropyLoss
from losses.vf_alignment import vf_alignment_loss
from losses.vq import VQLoss
from networks.checkpoint.names import (
    ATTENTION,
    CONVNEXT,
    MAPPING,
    MODULATED_CONV,
    PROJECTION,
    QUANTIZER,
    TO_RGB,
    UPSAMPLER,
    Rows,
    to_own_name,
    to_reference_name,
)
from networks.compression import unshuffle_tokens
from networks.conditioning import Labels
from networks.config import TokenizerConfig
from networks.decoder.mapping import MappingNetwork
from networks.decoder.to_rgb import ClampedToRGB, ToRGB
from networks.equivariance import EquivarianceTransform, draw_transform
from networks.interfaces import Conditioning, Latent
from networks.latent import DiagonalGaussian
from networks.layers.attention import CrossAttentionBlock, SelfAttentionBlock
from networks.layers.attention_projection import AttentionProjection
from networks.layers.convnext import ModulatedConvNeXt
from networks.layers.modulated_conv3x3 import LayerNoise, ModulatedConv3x3, ResidualModulatedConv3x3
from networks.layers.resample import BlurUpsampler, separable_kernel, upsample2d
from networks.quantizer import MultiCodebookQuantizer, Quantized, usage_percent
from networks.tokens import map_to_tokens, tokens_to_map
from networks.vfm_vae import VFMVAETokenizer
from tests.golden.cases import Case, filled_state, load_filled
from tests.golden.check_encoders import backbone_options, build_encoder
from tests.tiny import loss_inputs_of

NO_NOISE = torch.zeros(())  # a sample without noise is the mode
CONSTRUCTOR_DEFAULTS = {
    "resolution_compression_factor": 16,
    "z_dimension": 32,
    "vocab_width": 64,
    "z_pooled_resolution": 1,
    "attnproj_quant_layers": 1,
    "attnproj_post_quant_layers": 1,
    "z_dim_for_mapping_mlp_output": 128,
    "vocab_size": 32768,
    "vocab_beta": 0.25,
    "use_entropy_loss": False,
    "entropy_temp": 0.01,
    "num_codebooks": 8,
    "concat_z_block_indices": [],
    "concat_z_mapped_dims": [],
    "how_to_process_concat_z": "unshuffle",
    "activation_for_concat_z": "gelu",
    "use_multiscale_output": True,
    "attn_block_indices": [],
    "attn_depths": [],
    "use_self_attn": True,
    "use_cross_attn": False,
    "use_convnext": True,
    "use_gaussian_blur": True,
    "add_additional_convnext": True,
    "img_resolution": 256,
    "num_blocks": 6,
    "num_fp16_res": 3,
    "conv_clamp": 256,
    "legacy": False,
    "conditional": False,
    "label_type": "cls2text",
    "label_dim": 1000,
}
SYNTHESIS_DEFAULTS = {
    "channel_base": 32768,
    "channel_max": 512,
    "num_res_blocks": 3,
    "attn_heads": 8,
    "attn_ff_mult": 4,
}


def tokenizer_config(kwargs: dict, vfm: dict) -> TokenizerConfig:
    """The reference's constructor arguments as a configuration."""
    given = {**CONSTRUCTOR_DEFAULTS, **kwargs}
    # The patch size is that of the backbone, whatever the name says.
    patch = backbone_options(vfm).get("patch_size")
    given["vfm_name"] = f"{vfm['family']}-patch{patch}" if patch else vfm["family"]
    given.update({**SYNTHESIS_DEFAULTS, **given.pop("synthesis_kwargs", {})})

    def pick(model) -> dict:
        return {name: given[name] for name in model.model_fields if name in given}

    fields = TokenizerConfig.model_fields
    return TokenizerConfig(
        img_resolution=given["img_resolution"],
        encoder={**pick(fields["encoder"].annotation), "family": vfm["family"]},
        latent=pick(fields["latent"].annotation),
        decoder=pick(fields["decoder"].annotation),
        alignment_head=given.get("use_vf_loss", False),
    )


class GivenTexts(torch.nn.Module):
    """In place of a text model, where a case stores the embeddings of its texts: only their width is asked for."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width


def labels_of(case: Case, config: TokenizerConfig) -> Labels:
    """The stored labels of a case: one-hot classes, or embeddings of texts."""
    c = case.tensors.get("c")
    return Conditioning(c) if config.decoder.reads_texts else c


def build_tiny(case: Case) -> VFMVAETokenizer:
    """The tokenizer of a case, with filled weights, in eval mode."""
    family = case.facts["vfm"]["family"]
    config = tokenizer_config(case.facts["generator_kwargs"], case.facts["vfm"])
    encoder = build_encoder(case.facts["vfm"], config.encoder.patch_from_layers, config.encoder.scale_factor)
    if config.decoder.reads_texts:
        encoder.text_encoder = GivenTexts(case.tensors["c"].shape[1])
    model = VFMVAETokenizer(config, encoder)
    state = filled_state(case.facts["state_dict"])
    load_filled(model, {to_own_name(key, family=family): value for key, value in state.items()})
    keys = {key for key, *_ in case.facts["state_dict"]}
    assert {to_reference_name(name, family=family) for name in model.state_dict()} == keys
    return model.eval()


@torch.no_grad()
def check_tiny(case: Case) -> None:
    """A complete small tokenizer."""
    model = build_tiny(case)
    images = case.tensors["img"]
    checks: dict[str, Callable[[], Tensor]] = {}

    features = model.encoder(images)
    for i, level in enumerate(features.levels):
        checks[f"vfm_feature_{i}"] = lambda level=level: level
    eps = torch.randn(len(images), *model.latent_shape(*images.shape[2:]), generator=torch.Generator().manual_seed(0))
    latent = model.fuse(features, noise=case.tensors.get("eps", eps))
    z, z_mode = latent.z, model.fuse(features, noise=NO_NOISE).z
    kwargs = case.facts["generator_kwargs"]
    checks |= {"z_before_quantize": lambda: model.compression(features), "vf_loss": lambda: torch.zeros(())}
    if latent.posterior is not None:
        checks |= _posterior_checks(latent.posterior, kwargs) | {"eps": lambda: eps, "z_sample": lambda: z}
    else:
        checks |= _quantized_checks(model, latent, kwargs)
    decoder, c = model.decoder, labels_of(case, model.config)
    conditioning = model.condition(c, len(images))
    expanded = decoder.expansion(z_mode)
    decoded = model.decode(z_mode, c)
    checks |= {
        "z_decoded": lambda: expanded,
        "z_pooled": lambda: torch.nn.functional.adaptive_avg_pool2d(expanded, decoder.pooled_side).flatten(1),
        "w": lambda: decoder.style(expanded, None if conditioning is None else conditioning.label),
        "decode_img": lambda: decoded.reconstruction,
        "forward_img": lambda: model.decode(z, c).reconstruction,
    }
    for i, image in enumerate(reversed(decoded.pyramid.values())):
        checks[f"decode_multiscale_{i}"] = lambda image=image: image
    if model.config.alignment_head:
        options = {
            name: kwargs.get(name, default)
            for name, default in (("distmat_margin", 0), ("cos_margin", 0), ("distmat_weight", 1), ("cos_weight", 1))
        }
        last = model.config.encoder.patch_from_layers.index(-1)
        checks["vf_loss"] = lambda: vf_alignment_loss(model.alignment(z), features.as_map(last), **options)
    for name in case.tensors:
        if match := re.fullmatch(r"decode_img_truncation_([\d.]+)", name):
            checks[name] = lambda psi=float(match[1]): model.decode(z_mode, c, psi).reconstruction
        if match := re.fullmatch(r"(z_before_quantize|decode_img)_eq_prior_([\d.]+)", name):
            small = EquivarianceTransform(float(match[2]), on_input=True)
            of_small = model.encoder(images, small.input_scale)
            z_small = model.fuse(of_small, noise=NO_NOISE).z
            checks[f"z_before_quantize_eq_prior_{match[2]}"] = lambda f=of_small: model.compression(f)
            checks[f"decode_img_eq_prior_{match[2]}"] = lambda z=z_small: model.decode(z, c).reconstruction
    for name in case.tensors:
        if name not in ("img", "c"):
            assert name in checks, f"{case.name}: the stored tensor {name!r} has no counterpart"
            found = checks[name]()
            is_number = found.numel() == case.tensors[name].numel() == 1
            case.check(name, found.reshape_as(case.tensors[name]) if is_number else found)
    num_ws = case.facts.get("num_ws")
    if num_ws is not None:
        assert sum(len(block.layers) + 1 for block in decoder.blocks) == num_ws


def _posterior_checks(posterior: DiagonalGaussian, kwargs: dict) -> dict[str, Callable[[], Tensor]]:
    return {
        "mean": lambda: posterior.mean,
        "logvar_clamped": lambda: posterior.logvar,
        "kl_loss": lambda: posterior.kl().mean() if kwargs.get("use_kl_loss") else torch.zeros(()),
    }


def _quantized_checks(model: VFMVAETokenizer, latent: Latent, kwargs: dict) -> dict[str, Callable[[], Tensor]]:
    quantized, given = latent.quantized, {**CONSTRUCTOR_DEFAULTS, **kwargs}
    vq, entropy = codebook_losses(quantized, given["vocab_beta"], given["entropy_temp"], given["use_entropy_loss"])
    return {
        "z_quantized": lambda: latent.z,
        "indices": lambda: quantized.indices.flatten(2),
        "vq_loss": lambda: vq,
        "entropy_loss": lambda: entropy,
        "codebook_usages": lambda: usage_percent(model.quantizer.code_shares(quantized.indices)),
        "kl_loss": lambda: torch.zeros(()),
    }


def codebook_losses(quantized: Quantized, beta: float, temperature: float, use_entropy: bool) -> tuple[Tensor, Tensor]:
    """VQ loss, and entropy loss or 0 where it is off, of codes alone."""
    inputs = loss_inputs_of(quantized)
    vq = VQLoss(VQTermConfig(weight=1.0, vocab_beta=beta))(inputs)
    if not use_entropy:
        return vq, torch.zeros(())
    return vq, EntropyLoss(EntropyTermConfig(weight=1.0, entropy_temp=temperature))(inputs)


# --- single modules ----------------------------------------------------------------------------------------------


def _filled(case: Case, module: torch.nn.Module, rows: Rows) -> torch.nn.Module:
    prefix = case.facts["key_prefix"]
    state = {key.removeprefix(prefix): value for key, value in filled_state(case.facts["state_dict"]).items()}
    load_filled(module, {to_own_name(key, rows): value for key, value in state.items()})
    return module.eval()


def _attention_projection(case: Case) -> None:
    k = case.facts["kwargs"]
    module = AttentionProjection(k["in_dim"], k["out_dim"], k["num_heads"], k["num_layers"], k["is_quant"])
    case.check("out", _filled(case, module, PROJECTION)(case.tensors["in/x"]))


def _unshuffle(case: Case) -> None:
    tokens = case.tensors["in/x"]
    side = int(tokens.shape[1] ** 0.5)
    case.check("out", unshuffle_tokens(tokens, (side, side), case.facts["kwargs"]["downscale_factor"])[0])


def _convnext(case: Case) -> None:
    k = case.facts["kwargs"]
    noise_side = 8 << k["block_index"] if k["legacy"] else None
    module = ModulatedConvNeXt(k["channels"], k["w_dim"], k["kernel_size"], noise_side)
    case.check("out", _filled(case, module, CONVNEXT)(case.tensors["in/x"], case.tensors["in/w"]))


def _upsampler(case: Case) -> None:
    k = case.facts["kwargs"]
    taps = {"3x3": (1, 2, 1), "4x4": (1, 3, 3, 1), "5x5": (1, 4, 6, 4, 1)}[k["blur_kernel"]]
    module = BlurUpsampler(
        k["in_channels"], k["out_channels"], taps if k["use_gaussian_blur"] else None, k["pre_normalize"]
    )
    case.check("out", _filled(case, module, UPSAMPLER)(case.tensors["in/x"]))


def _to_rgb(case: Case) -> None:
    k = case.facts["kwargs"]
    module = _filled(case, ToRGB(k["in_channels"], k["w_dim"]), TO_RGB)
    case.check("out", module(case.tensors["in/x"], case.tensors["in/w"]))


def _self_attention(case: Case) -> None:
    k = case.facts["kwargs"]
    module = _filled(case, SelfAttentionBlock(k["dim"], k["heads"], k["ff_mult"]), ATTENTION)
    case.check("out", module(case.tensors["in/x"]))


def _cross_attention(case: Case) -> None:
    k = case.facts["kwargs"]
    assert k["dim_head"] * k["heads"] == k["dim"], "heads share the channels"
    module = _filled(case, CrossAttentionBlock(k["dim"], k["dim_context"], k["heads"], k["ff_mult"]), ATTENTION)
    x, context = case.tensors["in/x"], case.tensors["in/context"]
    if "out_nomask" in case.tensors:
        case.check("out_nomask", module(x, context))
    if "out_mask_upstream" in case.tensors:
        # The reference withdraws the null token as soon as there is a mask; here it stays. Nothing else differs, so
        # the reference's result must come from the same parts with that one entry of the mask turned.
        mask = case.tensors["in/mask"].bool()
        attended = module.attn.attend_to(x, context, torch.nn.functional.pad(mask, (1, 0), value=False))
        case.check("out_mask_upstream", module.feed_forward(x + attended))
        kept = module.attn.attend_to(x, context, torch.nn.functional.pad(mask, (1, 0), value=True))
        assert torch.equal(module(x, context, mask), module.feed_forward(x + kept))


def _modulated_conv(case: Case) -> None:
    k = case.facts["kwargs"]
    x, w = case.tensors["in/x"], case.tensors["in/w"]
    residual, clamp = k.get("residual", False), k.get("conv_clamp")
    for name in case.tensors:
        if name.startswith("in/"):
            continue
        gain = 0.5**0.5 if "gain_sqrt_half" in name or (name == "out" and residual) else 1.0
        if residual:
            module = ResidualModulatedConv3x3(k["out_channels"], k["w_dim"], k["resolution"], gain, clamp)
        else:
            module = ModulatedConv3x3(
                k["in_channels"], k["out_channels"], k["w_dim"], k["resolution"], k.get("up", 1) == 2, gain, clamp
            )
        noise = LayerNoise("none" if "noise_none" in name else "const")
        case.check(name, _filled(case, module, MODULATED_CONV)(x, w, noise))


def _clamped_to_rgb(case: Case) -> None:
    k = case.facts["kwargs"]
    module = _filled(case, ClampedToRGB(k["in_channels"], k["w_dim"], k.get("conv_clamp")), TO_RGB)
    case.check("out", module(case.tensors["in/x"], case.tensors["in/w"]))


def _upsample2d(case: Case) -> None:
    k = case.facts["kwargs"]
    assert k["up"] == 2, "images are only ever doubled"
    case.check("out", upsample2d(case.tensors["in/img"], separable_kernel(k["filter"])))


def _mapping(case: Case) -> None:
    k, z, label = case.facts["kwargs"], case.tensors["in/z"], case.tensors.get("in/c")
    width = {"class_dim" if k["label_type"] == "cls2id" else "text_dim": k["c_dim"]}
    module = _filled(case, MappingNetwork(k["z_dim_input"], k["z_dim_output"], **width), MAPPING)
    num_ws = case.tensors["w"].shape[1]

    def repeated(w: Tensor) -> Tensor:
        return w[:, None].expand(-1, num_ws, -1)

    assert module.w_dim == k["w_dim"]
    case.check("w", repeated(module(z, label)))
    for name in case.tensors:
        if match := re.fullmatch(r"w_psi([\d.]+)", name):
            case.check(name, repeated(module(z, label, truncation_psi=float(match[1]))))
    case.check("w_train_step", repeated(module(z, label, update_average=True)))
    case.check("x_avg_after_train_step", module.x_avg)
    module(z, label, update_average=True)
    case.check("x_avg_after_2_train_steps", module.x_avg)


def _gaussian(case: Case) -> None:
    inputs = {name: value for name, value in case.tensors.items() if name.startswith("in/")}
    posterior = DiagonalGaussian(next(v for n, v in inputs.items() if "eps" not in n and "noise" not in n))
    noise = next((v for n, v in inputs.items() if "eps" in n or "noise" in n), None)
    found = {"mean": posterior.mean, "logvar": posterior.logvar, "std": posterior.std, "kl": posterior.kl()}
    found["mode"] = posterior.mode()
    if noise is not None:
        found["sample"] = found["z"] = posterior.sample(noise=noise)
    for name in case.tensors:
        if not name.startswith("in/"):
            case.check(name, found[name])


def _quantizer(case: Case) -> None:
    """Two forwards on the same input, each with its losses and the usage after it; then gradients, and tokens alone."""
    k = case.facts["kwargs"]
    module = _filled(case, MultiCodebookQuantizer(k["vocab_size"], k["vocab_width"], k["num_codebooks"]), QUANTIZER)
    features = case.tensors["in/features"].requires_grad_()
    grid = (features.shape[1], 1)
    found: dict[str, Tensor] = {}
    for call in range(1, 3):
        quantized = module(tokens_to_map(features, grid))
        vq, entropy = codebook_losses(quantized, k["beta"], k["entropy_temp"], k["use_entropy_loss"])
        shares = module.code_shares(quantized.indices)
        module.track_usage(shares, earlier=call - 1)
        zq = map_to_tokens(quantized.z)
        found |= {f"zq_{call}": zq, f"vq_loss_{call}": vq, f"entropy_loss_{call}": entropy}
        found[f"usage_{call}"] = usage_percent(shares)
        found |= {f"vocab_usage_cb{i}_{call}": book.usage.clone() for i, book in enumerate(module.codebooks)}
    weights = re.search(r"([\d.]+)\*sum\(zq\)\+vq_loss\+([\d.]+)\*entropy_loss", case.facts["grad_note"])
    (float(weights[1]) * zq.sum() + vq + float(weights[2]) * entropy).backward()
    found |= {f"grad_codebook{i}": book.codes.grad for i, book in enumerate(module.codebooks)}
    tokens = module.latent_to_tokens(tokens_to_map(features, grid))
    found |= {"grad_features": features.grad, "indices": tokens.flatten(2)}
    found["idx_to_f"] = map_to_tokens(module.tokens_to_latent(tokens))
    for name in case.tensors:
        if not name.startswith("in/"):
            case.check(name, found[name])


def _equivariance_draws(case: Case) -> None:
    for setting, expected in case.facts["draws"].items():
        p = dict(part.split("=") for part in setting.split(","))
        rng = random.Random(0)
        for scale, angle, on_input in expected:
            drawn = draw_transform(rng, float(p["p_eq_prior"]), float(p["p_eq_prior_scale"]))
            assert (drawn.scale, drawn.quarter_turns, drawn.on_input) == (scale, angle, on_input)
            case.compared += 1


UNITS: dict[str, Callable[[Case], None]] = {
    "attnproj": _attention_projection,
    "unshuffle_tokens": _unshuffle,
    "convnext_k": _convnext,
    "upblur": _upsampler,
    "convnext_torgb": _to_rgb,
    "self_attention_block": _self_attention,
    "cross_attention_block": _cross_attention,
    "synlayer": _modulated_conv,
    "torgb_stylegan": _clamped_to_rgb,
    "upsample2d": _upsample2d,
    "mapping": _mapping,
    "gaussian": _gaussian,
    "quantizer": _quantizer,
    "equivariance_draws": _equivariance_draws,
}


def longest_prefix(name: str, table: dict[str, object]) -> str | None:
    """The longest key of a table that a name starts with."""
    return max((key for key in table if name.startswith(key)), key=len, default=None)


def check_unit(case: Case) -> None:
    """A single module."""
    kind = longest_prefix(case.unit, UNITS)
    assert kind is not None, f"no test for the unit {case.unit!r}"
    UNITS[kind](case)
    unknown = {name for name in case.tensors if not name.startswith("in/")} - case.checked
    assert not unknown, f"{case.name}: stored tensors without a counterpart: {sorted(unknown)}"
