"""SigLIP2 of fixed resolution (an ordinary SigLIP vision tower)."""

from __future__ import annotations

from torch import Tensor, nn

from common.errors import NotBuiltError
from networks.encoders import model_config_of
from networks.encoders.transformers_vit import TransformersViT, load_pretrained


class SigLIP2Encoder(TransformersViT):
    """SigLIP2 vision tower; position embeddings are interpolated bicubically to other image sizes."""

    @classmethod
    def load_backbone(cls, vfm_name: str, revision: str | None) -> nn.Module:
        from transformers import SiglipVisionModel

        model_type = (model_config_of(vfm_name) or {}).get("model_type", "")
        if "naflex" in vfm_name.lower() or model_type.startswith("siglip2"):
            raise NotBuiltError(
                f"encoder.vfm_name: {vfm_name!r} is a NaFlex model (flattened patches), which is not built yet; "
                "use a fixed-resolution SigLIP2, e.g. google/siglip2-large-patch16-512."
            )
        return load_pretrained(SiglipVisionModel, vfm_name, revision)

    def embed(self, pixels: Tensor) -> Tensor:
        return self.backbone.embeddings(pixels, interpolate_pos_encoding=True)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.encoder.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.backbone.post_layernorm
