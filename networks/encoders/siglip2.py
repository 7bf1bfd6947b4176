"""SigLIP2 of fixed resolution (an ordinary SigLIP vision tower)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from common.errors import NotBuiltError
from networks.encoders.transformers_vit import TransformersViT


class SigLIP2Encoder(TransformersViT):
    """SigLIP2 vision tower; position embeddings are interpolated bicubically to other image sizes."""

    @classmethod
    def model_class(cls, model_type: str | None) -> Any:
        from transformers import SiglipVisionModel

        if model_type is not None and model_type.startswith("siglip2"):
            raise NotBuiltError(
                "encoder.vfm_name: this is a NaFlex SigLIP2 (flattened patches), which is not built yet; "
                "use a fixed-resolution one, e.g. google/siglip2-large-patch16-512."
            )
        return SiglipVisionModel

    def embed(self, pixels: Tensor) -> Tensor:
        return self.backbone.embeddings(pixels, interpolate_pos_encoding=True)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.encoder.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.backbone.post_layernorm
