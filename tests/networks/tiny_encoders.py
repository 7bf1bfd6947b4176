"""One tiny model per family with random weights, saved as its library saves it, and what the library makes of images.

The expected layers come from whole forward passes of the libraries; nothing here calls the code under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
DEPTH = 3
Levels = dict[int, Tensor]


@dataclass(frozen=True)
class Expected:
    """Layers 0, 2, -2 and -1 as [B, N, D], and the pooled output [B, D]."""

    levels: Levels
    pooled: Tensor


@dataclass(frozen=True)
class TinyEncoder:
    """A family in small.

    Attributes:
        save: writes the model into a folder.
        expected: backbone, normalised pixels -> what the library computes.
        patch: pixels per patch.
        merge: patches per side that layer -1 merges.
        last_channels: channels of layer -1; all others have 32.
        family: where the key under which it is listed has more than one model.
        lost: part of the name of a weight that the tests remove from the file.
    """

    save: Callable[[Path], None]
    expected: Callable[[nn.Module, Tensor], Expected]
    patch: int = 8
    merge: int = 1
    last_channels: int = 32
    family: str | None = None
    lost: str = "blocks.1"

    def widths(self, layers: list[int]) -> list[int]:
        return [self.last_channels if layer == -1 else 32 for layer in layers]


def saved(folder: Path, build: Callable[[], nn.Module]) -> None:
    """Save a model of the transformers library with all weights drawn at random, norms and scales too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)


def transformers_model(model: str, config: str, **options: Any) -> Callable[[Path], None]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return lambda folder: saved(folder, build)


def save_whole_qwen(folder: Path) -> None:
    """The whole vision-language model, in bfloat16 as it is published."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        **{**SHAPE, "num_hidden_layers": 1},
        "num_key_value_heads": 1,
        "vocab_size": 48,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    tokens = {"image_token_id": 40, "video_token_id": 41, "vision_start_token_id": 42, "vision_end_token_id": 43}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=QWEN_VISION, **tokens)
    saved(folder, lambda: Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16))


QWEN_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": 24,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}


def timm_model(name: str, **options: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        import timm

        shape = {"embed_dim": 32, "depth": DEPTH, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 5}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model(name, **shape, **options)
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            timm.models.save_for_hf(model, folder, safe_serialization=True)

    return save


def without_prefix(count: int, normalised: str) -> Callable[[nn.Module, Tensor], Expected]:
    """Expected layers of a transformers model whose hidden states are [B, prefix + N, D].

    Args:
        normalised: `last`: the library normalises its last hidden state; otherwise the norm that does it.
    """

    def expected(backbone: nn.Module, pixels: Tensor) -> Expected:
        options = {} if "dino" in backbone.config.model_type else {"interpolate_pos_encoding": True}
        if backbone.config.model_type == "vit_mae":
            grid = (pixels.shape[2] // 8) * (pixels.shape[3] // 8)
            options["noise"] = torch.arange(grid).float().expand(len(pixels), -1)
        whole = backbone(pixels, output_hidden_states=True, **options)
        last = whole.last_hidden_state
        if normalised != "last":
            last = backbone.get_submodule(normalised)(last)
        states = {0: whole.hidden_states[0], 2: whole.hidden_states[2], -2: whole.hidden_states[DEPTH], -1: last}
        levels = {layer: state[:, count:] for layer, state in states.items()}
        pooled = levels[-1].mean(1) if backbone.config.model_type == "vit_mae" else whole.pooler_output
        return Expected(levels, pooled)

    return expected


def naflex_layers(backbone: nn.Module, pixels: Tensor) -> Expected:
    height, width = pixels.shape[2] // 8, pixels.shape[3] // 8
    patches = torch.stack([image.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 3, 4, 0) for image in pixels])
    whole = backbone(
        patches.reshape(len(pixels), height * width, -1),
        pixel_attention_mask=torch.ones(len(pixels), height * width, dtype=torch.long),
        spatial_shapes=torch.tensor([[height, width]] * len(pixels)),
        output_hidden_states=True,
    )
    states = whole.hidden_states
    return Expected({0: states[0], 2: states[2], -2: states[3], -1: whole.last_hidden_state}, whole.pooler_output)


def qwen_layers(backbone: nn.Module, pixels: Tensor) -> Expected:
    """The library's outputs in window order, put into row-major order with the library's own window index."""
    from transformers.vision_utils import get_vision_window_index

    batch, height, width = len(pixels), pixels.shape[2] // 4, pixels.shape[3] // 4
    frames = torch.stack([pixels, pixels], dim=2)  # [B, C, 2, H, W]
    split = "b c t (gh mh p) (gw mw q) -> (b gh gw mh mw) (c t p q)"
    patches = rearrange(frames, split, mh=2, mw=2, p=4, q=4)
    grid = torch.tensor([[1, height, width]] * batch)
    whole = backbone(patches, grid_thw=grid, output_hidden_states=True)
    index, _ = get_vision_window_index(grid, spatial_merge_size=2, window_size=16, patch_size=4)

    def row_major(state: Tensor) -> Tensor:
        groups = torch.empty_like(state).view(-1, 4, state.shape[-1])
        groups[index] = state.view(-1, 4, state.shape[-1])
        back = "(b gh gw) (mh mw) d -> b (gh mh gw mw) d"
        return rearrange(groups, back, b=batch, gh=height // 2, mh=2, mw=2)

    merged = whole.pooler_output.view(batch, -1, 24)
    levels = {0: row_major(whole.hidden_states[0]), 2: row_major(whole.hidden_states[2])}
    levels |= {-2: row_major(whole.last_hidden_state), -1: merged}
    return Expected(levels, merged.mean(1))


def timm_layers(eva: bool) -> Callable[[nn.Module, Tensor], Expected]:
    def expected(backbone: nn.Module, pixels: Tensor) -> Expected:
        options = {"output_fmt": "NLC", "intermediates_only": True}
        seen: list[Tensor] = []
        hook = backbone.norm_pre.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        outputs = backbone.forward_intermediates(pixels, **options)
        hook.remove()
        normalised = backbone.forward_intermediates(pixels, norm=True, **options)[-1]
        prefix = backbone.num_prefix_tokens
        levels = {0: seen[0][:, prefix:], 2: outputs[1], -2: outputs[2], -1: outputs[2] if eva else normalised}
        if not eva:
            return Expected(levels, backbone.forward_head(backbone.forward_features(pixels), pre_logits=True))
        last: list[Tensor] = []
        hook = backbone.blocks[-1].register_forward_hook(lambda *args: last.append(args[2]))
        backbone.forward_features(pixels)
        hook.remove()
        return Expected(levels, last[0][:, 0])

    return expected


_CLIP_LIKE = {**SHAPE, "image_size": 32, "patch_size": 8}
_DINOV2 = {**SHAPE, "image_size": 32, "patch_size": 8, "mlp_ratio": 2}
_MAE = {**_CLIP_LIKE, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}

TINY: dict[str, TinyEncoder] = {
    "siglip2": TinyEncoder(
        transformers_model("SiglipVisionModel", "SiglipVisionConfig", **_CLIP_LIKE),
        without_prefix(0, "last"),
        lost="layers.1",
    ),
    "siglip2_naflex": TinyEncoder(
        transformers_model("Siglip2VisionModel", "Siglip2VisionConfig", **SHAPE, num_patches=16, patch_size=8),
        naflex_layers,
        lost="layers.1",
    ),
    "dinov2": TinyEncoder(
        transformers_model("Dinov2Model", "Dinov2Config", **_DINOV2), without_prefix(1, "last"), lost="layer.1"
    ),
    "dinov2 with registers": TinyEncoder(
        transformers_model("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **_DINOV2, num_register_tokens=4),
        without_prefix(5, "last"),
        family="dinov2",
        lost="register_tokens",
    ),
    "dinov3": TinyEncoder(
        transformers_model("DINOv3ViTModel", "DINOv3ViTConfig", **_CLIP_LIKE, num_register_tokens=4),
        without_prefix(5, "last"),
        lost="layer.1",
    ),
    "mae": TinyEncoder(
        transformers_model("ViTMAEForPreTraining", "ViTMAEConfig", **_MAE),
        without_prefix(1, "last"),
        lost="layer.1",
    ),
    "clip": TinyEncoder(
        transformers_model("CLIPVisionModel", "CLIPVisionConfig", **_CLIP_LIKE),
        without_prefix(1, "post_layernorm"),
        lost="layers.1",
    ),
    "qwen": TinyEncoder(save_whole_qwen, qwen_layers, patch=4, merge=2, last_channels=24),
    "qwen tower alone": TinyEncoder(
        transformers_model("Qwen2_5_VisionTransformerPretrainedModel", "Qwen2_5_VLVisionConfig", **QWEN_VISION),
        qwen_layers,
        patch=4,
        merge=2,
        last_channels=24,
        family="qwen",
    ),
    "eva": TinyEncoder(timm_model("eva02_tiny_patch14_224"), timm_layers(eva=True)),
    "eva without rotary positions": TinyEncoder(
        timm_model("eva_giant_patch14_224"), timm_layers(eva=True), family="eva"
    ),
    "timm": TinyEncoder(timm_model("vit_tiny_patch16_224"), timm_layers(eva=False)),
    "timm dinov3": TinyEncoder(timm_model("vit_small_patch16_dinov3"), timm_layers(eva=False), family="timm"),
    "timm mixed rotary": TinyEncoder(
        timm_model("vit_small_patch16_rope_mixed_224"), timm_layers(eva=False), family="timm"
    ),
    "timm clip": TinyEncoder(timm_model("vit_base_patch16_clip_224"), timm_layers(eva=False), family="timm"),
    "timm siglip": TinyEncoder(timm_model("vit_base_patch16_siglip_224"), timm_layers(eva=False), family="timm"),
}
