"""How the cases of VFMTok's networks are compared."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from common.value_range import signed_to_unit
from evaluation.decoding import OutputSize, to_pixels
from losses.config import EntropyTermConfig, VQTermConfig
from losses.entropy import EntropyLoss
from losses.interfaces import LossInputs
from losses.semantic import SemanticLoss
from losses.vq import VQLoss
from networks.checkpoint.names import (
    DECODE_TRANSFORMER,
    DEFORMABLE_ATTENTION,
    PIXEL_DECODER,
    REGION_LAYERS,
    VFMTOK,
    Rows,
    to_reference_name,
)
from networks.encoders.dinov2 import DINOv2Encoder
from networks.quantizer import MultiCodebookQuantizer
from networks.vfmtok.config import DecodeTransformerConfig, PixelDecoderConfig, RegionEncoderConfig, VFMTokConfig
from networks.vfmtok.decode_transformer import DecodeTransformer
from networks.vfmtok.deformable_attention import MultiScaleDeformableAttention, sample_levels
from networks.vfmtok.pixel_decoder import PixelDecoder
from networks.vfmtok.region_encoder import RegionLayers, reference_points
from networks.vfmtok.resize import resize_to_model
from networks.vfmtok.tokenizer import VFMTokTokenizer
from tests.golden.cases import Case, fill
from tests.tiny import loss_inputs_of

PUBLISHED_EPSILON = 1e-5  # of the entropy loss
BACKBONE = "encode_transformer.backbone.pretrained_encoder."


def load_by_rule(module: nn.Module, rows: Rows, listed: dict[str, Any]) -> None:
    """Give a module the weights of the fill rule; its names and shapes must be exactly those that the case lists."""
    names = {own: to_reference_name(own, rows) for own in module.state_dict() if not own.endswith(".usage")}
    shapes = {names[own]: list(value.shape) for own, value in module.state_dict().items() if own in names}
    assert shapes == {key: shape for key, (shape, _) in listed.items()}
    module.load_state_dict({own: fill(key, shapes[key]) for own, key in names.items()}, strict=False)


def _check_all(case: Case, found: dict[str, Tensor], inputs: set[str]) -> None:
    """Every stored tensor but the inputs has a counterpart and agrees with it."""
    stored = {name for name in case.tensors if name not in inputs}
    assert stored == set(found), f"{case.name}: without counterpart: {sorted(stored ^ set(found))}"
    for name, value in found.items():
        case.check(name, value)


# --- modules -----------------------------------------------------------------------------------------------------


def check_deformable_attention(case: Case) -> None:
    """The core with its gradients, and the module with its initial offsets."""
    facts, tensors = case.facts, case.tensors
    grids = [tuple(grid) for grid in facts["spatial_shapes_HW"]]
    inputs = {
        name: tensors[name].clone().requires_grad_() for name in ("value", "sampling_locations", "attention_weights")
    }
    core = sample_levels(*inputs.values(), grids)
    gradients = torch.autograd.grad(core, list(inputs.values()), tensors["upstream_grad"])
    kwargs = facts["module_kwargs"]
    module = MultiScaleDeformableAttention(kwargs["d_model"], kwargs["n_heads"], kwargs["n_levels"], kwargs["n_points"])
    found = {"core_output": core, "initial_sampling_offsets_bias": module.offsets.bias.clone()}
    found |= {f"grad_{name}": gradient for name, gradient in zip(inputs, gradients)}
    load_by_rule(module, DEFORMABLE_ATTENTION, facts["state_dict"])
    found["module_output"] = module(tensors["query"], tensors["reference_points"], tensors["input_flatten"], grids)
    _check_all(case, found, {*inputs, "upstream_grad", "query", "reference_points", "input_flatten"})


@torch.no_grad()
def check_region_layers(case: Case) -> None:
    """The stack of deformable and causal layers."""
    kwargs, tensors = case.facts["kwargs"], case.tensors
    config = RegionEncoderConfig(
        width=kwargs["dim"],
        depth=kwargs["depth"],
        heads=kwargs["n_heads"],
        mlp_dim=case.facts["effective_ffn_width"],
        num_points=kwargs["enc_n_points"],
        num_tokens=math.prod(case.facts["query_grid"]),
    )
    layers = RegionLayers(config, kwargs["num_feature_levels"])
    load_by_rule(layers, REGION_LAYERS, case.facts["state_dict"])
    maps = [tensors[f"kv_{i}"] for i in range(kwargs["num_feature_levels"])]
    levels = [rearrange(level, "b c h w -> b (h w) c") for level in maps]
    q = rearrange(tensors["x"], "b c h w -> b (h w) c")
    output = layers(q, tensors["pos"], levels, [tuple(level.shape[-2:]) for level in maps])
    found = {"output": output, "reference_points_xy": reference_points(config.num_tokens)}
    _check_all(case, found, {"x", "pos", *(f"kv_{i}" for i in range(len(maps)))})


@torch.no_grad()
def check_decode_transformer(case: Case) -> None:
    """Both passes, and the resized position embeddings."""
    kwargs = case.facts["kwargs"]
    config = DecodeTransformerConfig(
        depth=kwargs["depth"],
        heads=kwargs["num_head"],
        mlp_dim=kwargs["mlp_dim"],
        dropout=kwargs["dropout"],
        num_register_tokens=kwargs["num_register_tokens"],
    )
    positions = case.facts["state_dict"]["position_embedding"][0][1]
    feature_side = math.isqrt(positions - 1)
    model = DecodeTransformer(config, kwargs["dim"], kwargs["n_carrier"], feature_side, kwargs["vfm_dim"])
    load_by_rule(model, DECODE_TRANSFORMER, case.facts["state_dict"])
    side = kwargs["image_size"] // kwargs["patch_size"]
    slots = case.tensors["slots"]
    found = {
        "z": model(slots, side),
        "semantic": model.predict_features(slots),
        "position_embedding_resized": model.positions_for(side),
    }
    _check_all(case, found, {"slots"})


@torch.no_grad()
def check_pixel_decoder(case: Case) -> None:
    """The convolutional decoder."""
    kwargs = case.facts["kwargs"]
    config = PixelDecoderConfig(
        channels=kwargs["ch"], multipliers=kwargs["ch_mult"], num_res_blocks=kwargs["num_res_blocks"]
    )
    model = PixelDecoder(config, kwargs["z_channels"])
    load_by_rule(model, PIXEL_DECODER, case.facts["state_dict"])
    _check_all(case, {"image": model(case.tensors["z"])}, {"z"})


@torch.no_grad()
def check_preprocess(case: Case) -> None:
    """The published resize of images of several sizes."""
    step = int(re.search(r"::(\d+)", case.facts["stored"])[1])
    seed = int(re.search(r"Generator\((\d+)\)", case.facts["input"])[1])
    side = int(re.search(r"to (\d+)x", case.facts["what"])[1])
    found = {}
    for height, width in case.facts["sizes"]:
        images = 2 * torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) - 1
        resized = signed_to_unit(resize_to_model(images, side))
        found[f"out_{height}x{width}_sub{step}"] = resized[:, :, ::step, ::step]
    _check_all(case, found, set())


# --- the quantiser -------------------------------------------------------------------------------------------------


def check_quantizer(case: Case) -> None:
    """Codes, losses and gradients of a codebook."""
    kwargs, tensors = case.facts["kwargs"], case.tensors
    quantizer = MultiCodebookQuantizer(kwargs["n_e"], kwargs["e_dim"], l2_norm=kwargs["l2_norm"])
    codes = quantizer.codebooks[0].codes
    codes.data = fill("embedding.weight", list(codes.shape))
    z = tensors["z"].clone().requires_grad_()
    quantized = quantizer(z)
    inputs = loss_inputs_of(quantized)
    commitment_only = VQLoss(VQTermConfig(weight=1.0, vocab_beta=0.0))(inputs)
    commit = VQLoss(VQTermConfig(weight=1.0, vocab_beta=kwargs["beta"]))(inputs) - commitment_only
    entropy = EntropyLoss(EntropyTermConfig(weight=1.0, entropy_eps=PUBLISHED_EPSILON))(inputs)
    entropy = kwargs["entropy_loss_ratio"] * entropy
    loss = (quantized.z * tensors["upstream_grad"]).sum() + commitment_only + commit + entropy
    loss.backward()
    indices = quantized.indices.flatten()
    found = {
        "z_q": quantized.z,
        "indices": indices,
        "vq_loss": commitment_only,
        "commit_loss": commit,
        "entropy_loss": entropy,
        "grad_z": z.grad,
        "grad_embedding": codes.grad,
        "codebook_entry_BNC": rearrange(quantizer.tokens_to_latent(quantized.indices), "b c h w -> b (h w) c"),
        # The reference counts, if at all, in a window that starts as code 0 everywhere.
        "codebook_usage": torch.tensor(kwargs["show_usage"] * len({0, *indices.tolist()}) / kwargs["n_e"]),
    }
    _check_all(case, found, {"z", "upstream_grad"})


# --- a complete tokenizer --------------------------------------------------------------------------------------------


def check_tokenizer(case: Case) -> None:
    """Features, codes, images, losses and gradients of a small tokenizer."""
    facts, kwargs = case.facts, case.facts["kwargs"]
    model = _tokenizer(case)
    shape, seed = re.search(r"torch\.rand\(([\d,]+), generator=.*manual_seed\((\d+)\)", facts["input"]).groups()
    generator = torch.Generator().manual_seed(int(seed))
    images = torch.rand([int(n) for n in shape.split(",")], generator=generator)
    output = model.train()(images)
    image, quantized = output.decoded.reconstruction, output.latent.quantized
    target = 2 * images - 1
    codes = loss_inputs_of(quantized)
    vq = VQLoss(VQTermConfig(weight=1.0, vocab_beta=0.0))(codes)
    commit = VQLoss(VQTermConfig(weight=1.0, vocab_beta=kwargs["commit_beta"]))(codes) - vq
    features = output.latent.features.levels
    sim = SemanticLoss(None)(LossInputs(target, image, semantic=output.predicted, semantic_target=features[-1]))
    mse, ratio = F.mse_loss(image, target), kwargs["entropy_ratio"]
    entropy = torch.zeros(())
    if ratio:
        entropy = ratio * EntropyLoss(EntropyTermConfig(weight=1.0, entropy_eps=PUBLISHED_EPSILON))(codes)
    total = 2 * mse + vq + commit + entropy + sim
    total.backward()
    with torch.no_grad():
        regions = model.region_encoder(output.latent.features)
        decoded = model.eval().decode(model.tokens_to_latent(quantized.indices)).reconstruction
    stride = int(re.search(r"image\[:, :, ::(\d+)", facts["image_subsampling"])[1])
    found = {f"features_{i}": level for i, level in enumerate(features)}
    found |= {
        "slots": regions,
        "pre_quant": model.to_code(regions),
        "indices": rearrange(quantized.indices, "b 1 h w -> b (h w)"),
        "quant_BNC": rearrange(quantized.z, "b c h w -> b (h w) c"),
        "semantic": output.predicted,
        "image_mean": image.mean((2, 3)),
        "image_std": image.std((2, 3)),
        "mse": mse,
        "vq_loss": vq,
        "commit_loss": commit,
        "entropy_loss": entropy,
        "sim_loss": sim,
        "total": total,
    }
    for name, value in found.items():
        case.check(name, value)
    for name, value in (("image_train_sub", image), ("image_eval_sub", decoded)):
        _close(case, name, value[:, :, ::stride, ::stride], 1e-4)
    parts = model.trainable_parts().named_parameters()
    gradients = {to_reference_name(own, VFMTOK): torch.zeros(()) if p.grad is None else p.grad for own, p in parts}
    norms = [name for name in case.tensors if name.startswith("grad_norm/")]
    for name in norms:
        _close(case, name, gradients[name.removeprefix("grad_norm/")].norm(), 1e-3)
    _check_uint8(case, decoded)
    compared = {*found, "image_train_sub", "image_eval_sub", *norms, "uint8_256_sub"}
    assert compared == set(case.tensors), sorted(compared ^ set(case.tensors))


def _tokenizer(case: Case) -> VFMTokTokenizer:
    """The tokenizer of a case, with filled weights."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    kwargs = case.facts["kwargs"]
    vit, depth = kwargs["vit"], kwargs["vit"]["depth"]
    layers = [block + 1 if block + 1 < depth else -1 for block in kwargs["levels"]]
    backbone = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=vit["embed_dim"],
            num_hidden_layers=depth,
            num_attention_heads=vit["num_heads"],
            mlp_ratio=vit["mlp_ratio"],
            image_size=vit["img_size"],
            patch_size=vit["patch_size"],
            num_register_tokens=4,
        )
    )
    config = VFMTokConfig(
        img_resolution=kwargs["image_size"],
        encoder={
            "vfm_name": f"dinov2-patch{vit['patch_size']}",
            "family": "dinov2",
            "scale_factor": 1.0,
            "patch_from_layers": layers,
            "patch_in_dimensions": [vit["embed_dim"]] * len(layers),
        },
        region_encoder={
            "width": kwargs["dim"],
            "depth": kwargs["depth"],
            "heads": kwargs["enc_heads"],
            "mlp_dim": kwargs["enc_ffn"],
            "num_points": kwargs["enc_n_points"],
            "num_tokens": kwargs["n_carrier"],
        },
        codebook={
            "vocab_size": kwargs["codebook_size"],
            "vocab_width": kwargs["codebook_dim"],
            "l2_norm": kwargs["l2_norm"],
        },
        decode_transformer={
            "depth": kwargs["depth"],
            "heads": kwargs["dec_heads"],
            "mlp_dim": kwargs["dec_mlp_dim"],
            "dropout": kwargs["dropout"],
        },
        pixel_decoder={"channels": kwargs["decoder_ch"], "multipliers": kwargs["decoder_ch_mult"]},
    )
    listed = case.facts["state_dict"]
    backbone.load_state_dict(
        _backbone_state({key: fill(key, shape) for key, (shape, _) in listed.items() if key.startswith(BACKBONE)})
    )
    model = VFMTokTokenizer(config, None)
    load_by_rule(model, VFMTOK, {key: entry for key, entry in listed.items() if not key.startswith(BACKBONE)})
    model.encoder = DINOv2Encoder(backbone, layers, 1.0)
    return model


def _backbone_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of DINOv2 by the names of its first release -> by those of the transformers library."""
    renamed = {}
    embeddings = {
        "cls_token": "cls_token",
        "mask_token": "mask_token",
        "register_tokens": "register_tokens",
        "pos_embed": "position_embeddings",
        "patch_embed.proj": "patch_embeddings.projection",
    }
    for key, value in state.items():
        name = key.removeprefix(BACKBONE)
        for old, new in embeddings.items():
            if name.startswith(old):
                renamed["embeddings." + name.replace(old, new)] = value
        if name.startswith("norm."):
            renamed["layernorm." + name.removeprefix("norm.")] = value
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            layer, rest = f"encoder.layer.{match[1]}.", match[2]
            if rest.startswith("attn.qkv."):
                for part, chunk in zip("qkv", value.chunk(3)):
                    renamed[f"{layer}attention.{part}_proj.{rest.rpartition('.')[2]}"] = chunk
                continue
            rest = rest.replace("attn.proj", "attention.o_proj").replace("ls1.gamma", "layer_scale1.lambda1")
            renamed[layer + rest.replace("ls2.gamma", "layer_scale2.lambda1")] = value
    return renamed


def _close(case: Case, name: str, found: Tensor, tolerance: float) -> None:
    """Relative to the largest magnitude of the stored tensor."""
    reference = case.tensors[name]
    assert found.shape == reference.shape, f"{name}: {tuple(found.shape)} instead of {tuple(reference.shape)}"
    difference, limit = (found.detach() - reference).abs().max().item(), tolerance * reference.abs().max().item()
    assert difference <= limit, f"{name}: differs by {difference:.3g}, allowed {limit:.3g}"
    case.compared += 1


def _check_uint8(case: Case, images: Tensor) -> None:
    """8-bit images of another side: at most one level apart, in at most 0.5 % of the values."""
    side, step = re.search(
        r"decode_codes_to_img\(indices, (\d+)\)\[:, ::(\d+)", case.facts["image_subsampling"]
    ).groups()
    pixels = rearrange(to_pixels(images, VFMTokTokenizer.png_rounding, OutputSize(int(side))), "b c h w -> b h w c")
    difference = (pixels[:, :: int(step), :: int(step)].int() - case.tensors["uint8_256_sub"].int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= 0.005
    case.compared += 1
