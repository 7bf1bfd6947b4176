"""Families of frozen vision foundation models (VFMs).

Adding one: write `networks/encoders/<family>.py` with a `VisionEncoder`, and add an entry to `FAMILIES`.
What must be known of a family without loading it (and without importing torch) stands in that entry;
`networks/encoders/recognition.py` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.registry import Registry


@dataclass(frozen=True)
class EncoderFamily:
    """Facts about a family of encoders.

    Args:
        target: where its `VisionEncoder` is, as `module:Class`.
        interpolation: how the losses resize target images for this family.
        patch_size: side in pixels of the patch behind one token, where neither the model's config nor its name says.
        last_layer_merge: layer -1 merges this many patches per side into one token.
        model_types: `model_type` values of the transformers library that belong to this family.
        architectures: regular expression of timm `architecture` names that belong to this family; "" for none.
        name_hint: regular expression, searched in the last component of a name in lower case.
        licence: of the published weights; their own page has the last word.
        has_text: a text model comes with it.
    """

    target: str
    interpolation: Literal["bilinear", "bicubic"]
    patch_size: int
    last_layer_merge: int = 1
    model_types: tuple[str, ...] = ()
    architectures: str = ""
    name_hint: str = ""
    licence: str = "see the encoder's own page"
    has_text: bool = False


# The first family that matches is taken: timm's names, which mention what they were trained like, come first.
FAMILIES: Registry = Registry(
    "encoder family",
    {
        "eva": EncoderFamily(
            "networks.encoders.timm_vit:EVAEncoder",
            "bicubic",
            16,
            architectures=r"^eva",
            name_hint=r"^eva",
            licence="MIT",
        ),
        "timm": EncoderFamily(
            "networks.encoders.timm_vit:TimmEncoder",
            "bicubic",
            16,
            architectures=r".",
            name_hint=r"^(vit|deit3?|flexivit|naflexvit)_",
        ),
        "siglip2_naflex": EncoderFamily(
            "networks.encoders.siglip2:SigLIP2NaFlexEncoder",
            "bilinear",
            16,
            model_types=("siglip2", "siglip2_vision_model"),
            name_hint=r"siglip2.*naflex",
            licence="Apache-2.0",
        ),
        "siglip2": EncoderFamily(
            "networks.encoders.siglip2:SigLIP2Encoder",
            "bilinear",
            16,
            model_types=("siglip", "siglip_vision_model"),
            name_hint=r"siglip",
            licence="Apache-2.0",
            has_text=True,
        ),
        "dinov2": EncoderFamily(
            "networks.encoders.dinov2:DINOv2Encoder",
            "bicubic",
            14,
            model_types=("dinov2", "dinov2_with_registers"),
            name_hint=r"dinov2",
            licence="Apache-2.0",
        ),
        "dinov3": EncoderFamily(
            "networks.encoders.dinov3:DINOv3Encoder",
            "bicubic",
            16,
            model_types=("dinov3_vit",),
            name_hint=r"dinov3",
            licence="DINOv3 License",
        ),
        "mae": EncoderFamily(
            "networks.encoders.mae:MAEEncoder",
            "bilinear",
            16,
            model_types=("vit_mae",),
            name_hint=r"mae",
            licence="CC-BY-NC-4.0 (original release)",
        ),
        "clip": EncoderFamily(
            "networks.encoders.clip:CLIPEncoder",
            "bicubic",
            32,
            model_types=("clip", "clip_vision_model"),
            name_hint=r"clip",
            licence="MIT (OpenAI's release)",
        ),
        "qwen": EncoderFamily(
            "networks.encoders.qwen2_5_vl:Qwen25VLEncoder",
            "bicubic",
            14,
            last_layer_merge=2,
            model_types=("qwen2_5_vl", "qwen2_5_vl_vision"),
            name_hint=r"qwen",
            licence="Apache-2.0 (7B), Qwen Research License (3B)",
        ),
        "efficientnet_lite0": EncoderFamily(
            "networks.encoders.efficientnet_lite0:EfficientNetLite0Encoder",
            "bilinear",
            16,
            name_hint=r"efficientnet[_-]lite0",
            licence="Apache-2.0",
        ),
    },
)
