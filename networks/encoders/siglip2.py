"""SigLIP2: of fixed resolution (an ordinary SigLIP vision tower), and NaFlex (flattened patches of any aspect)."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from common.errors import UserError
from networks.encoders.recognition import model_config_of
from networks.encoders.text import TextEncoder, load_text_tokenizer
from networks.encoders.transformers_vit import TransformersViT, load_pretrained


class SigLIP2Encoder(TransformersViT):
    """SigLIP2 vision tower; position embeddings are interpolated bicubically to other image sizes."""

    model_classes = (("siglip", "SiglipVisionModel"), ("siglip_vision_model", "SiglipVisionModel"))
    reference_names = tuple(
        (part, f"vision_model.{part}") for part in ("embeddings", "encoder.layers", "post_layernorm", "head")
    )

    @classmethod
    def load_text_encoder(cls, vfm_name: str, revision: str | None) -> TextEncoder:
        from transformers import SiglipTextModel

        backbone = load_pretrained(vfm_name, revision, lambda values: SiglipTextModel)
        return TextEncoder(backbone, load_text_tokenizer(vfm_name, revision))

    @classmethod
    def empty_text_encoder(cls, vfm_name: str, revision: str | None) -> TextEncoder | None:
        from transformers import SiglipTextConfig, SiglipTextModel

        values = model_config_of(vfm_name, revision)
        if values is None:
            return None
        return TextEncoder(SiglipTextModel(SiglipTextConfig.from_dict(values.get("text_config", {}))), None)

    def embed(self, pixels: Tensor) -> tuple[Tensor, Any]:
        return self.backbone.embeddings(pixels, interpolate_pos_encoding=True), None

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.encoder.layers

    def normalise(self, state: Tensor) -> Tensor:
        return self.backbone.post_layernorm(state)

    def summarise(self, state: Tensor) -> Tensor:
        """The attention-pooling head. Raises UserError if the model has none."""
        if not self.backbone.use_head:
            raise UserError("this SigLIP vision tower was saved without its pooling head, so it pools nothing.")
        return self.backbone.head(self.normalise(state))


class SigLIP2NaFlexEncoder(SigLIP2Encoder):
    """SigLIP2 NaFlex on images of one size, so without padding; positions are interpolated bilinearly, antialiased."""

    model_classes = (("siglip2", "Siglip2VisionModel"), ("siglip2_vision_model", "Siglip2VisionModel"))
    reference_names = ()  # the reference has no such encoder

    def embed(self, pixels: Tensor) -> tuple[Tensor, Any]:
        p = self.patch_size
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        grid = torch.tensor([[pixels.shape[2] // p, pixels.shape[3] // p]])  # one for all images; read on the CPU
        return self.backbone.embeddings(patches, grid), None
