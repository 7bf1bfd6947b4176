"""Vision transformers of the timm library: EVA with the reference's conventions, and any other plain one."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from common.errors import UserError
from networks.encoders.base import CLIP_MEAN, CLIP_STD
from networks.encoders.recognition import HF_HUB, LOCAL_DIR, hub_id, local_folder, model_config_of
from networks.encoders.vit import ViTEncoder

DYNAMIC = {"dynamic_img_size": True, "dynamic_img_pad": False}  # positions are resampled to any image size


def timm_source(vfm_name: str, revision: str | None) -> str:
    """A name as timm's `create_model` wants it. Raises UserError for a missing folder or a revision without a hub."""
    folder, repository = local_folder(vfm_name), hub_id(vfm_name)
    if folder is not None:
        if not folder.is_dir():
            raise UserError(
                f"encoder.vfm_name: the folder {str(folder)!r} does not exist; give a model folder, a hub id or a "
                "model of timm's list."
            )
        return f"{LOCAL_DIR}{folder}"
    if repository is not None:
        return f"{HF_HUB}{repository}@{revision}" if revision else f"{HF_HUB}{repository}"
    if revision is not None:
        raise UserError(
            f"encoder.revision: found {revision!r}, but timm chooses the weights of {vfm_name!r}; give its hub id, "
            f"e.g. {HF_HUB}timm/{vfm_name}, to name a revision."
        )
    return vfm_name


def create_vit(source: str, vfm_name: str, pretrained: bool, **options: Any) -> nn.Module:
    """timm's model for a source; weights, if asked for, are loaded strictly.

    Raises: UserError if it cannot be had whole, or is no stack of blocks over one grid of patches.
    """
    import timm

    try:
        model = timm.create_model(source, pretrained=pretrained, **{**options, **DYNAMIC})
    except TypeError as error:  # convolutional and hierarchical models take no dynamic image size
        raise UserError(_not_plain(vfm_name, str(error))) from error
    except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"encoder.vfm_name: {vfm_name!r} could not be loaded by timm ({reason[:300]}). Give a vision transformer "
            "of timm by its name, its hub id, or the folder of a complete download."
        ) from error
    stack = all(hasattr(model, part) for part in ("patch_embed", "_pos_embed", "norm_pre", "blocks", "norm"))
    if not stack or not isinstance(model.patch_embed, timm.layers.PatchEmbed):
        raise UserError(_not_plain(vfm_name, type(model).__name__))
    stated = model.pretrained_cfg["num_classes"]
    if pretrained and model.num_classes != stated:  # timm then replaces the classifier, and checks no other weight
        raise UserError(
            f"encoder.vfm_name: the config.json of {vfm_name!r} states {stated} classes in one place and "
            f"{model.num_classes} in another, so timm would leave missing weights at random; make them equal."
        )
    return model


def _not_plain(vfm_name: str, reason: str) -> str:
    return (
        f"encoder.vfm_name: {vfm_name!r} is no plain vision transformer ({reason}), expected a VisionTransformer or "
        "Eva of timm, with one grid of patches."
    )


class TimmEncoder(ViTEncoder):
    """A plain vision transformer of timm (VisionTransformer, Eva), with mean and deviation of its own weights.

    Layer 0 is taken behind the position embedding and before any norm in front of the first block.
    """

    interpolation = "bicubic"

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.backbone.pretrained_cfg["mean"]

    @property
    def std(self) -> tuple[float, float, float]:
        return self.backbone.pretrained_cfg["std"]

    @classmethod
    def load_backbone(cls, vfm_name: str, revision: str | None) -> nn.Module:
        return create_vit(timm_source(vfm_name, revision), vfm_name, pretrained=True).float()

    @classmethod
    def empty_backbone(cls, vfm_name: str, revision: str | None) -> nn.Module | None:
        import timm

        values = model_config_of(vfm_name, revision)
        if values is not None and "architecture" in values:
            stated = values.get("pretrained_cfg", {})
            normalisation = {name: stated[name] for name in ("mean", "std") if name in stated}
            name = values["architecture"]
            options = {**values.get("model_args", {}), "pretrained_cfg_overlay": normalisation}
        else:
            name, options = vfm_name, {}
        if not timm.is_model(name):
            return None
        return create_vit(name, vfm_name, pretrained=False, **options)

    @property
    def patch_size(self) -> int:
        return self.backbone.patch_embed.patch_size[0]

    def layer_channels(self, layer: int) -> int:
        return self.backbone.embed_dim

    @property
    def prefix_tokens(self) -> int:
        return self.backbone.num_prefix_tokens

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.blocks

    def embed(self, pixels: Tensor) -> tuple[Tensor, Any]:
        """Tokens and, where the model has them, rotary positions."""
        positioned = self.backbone._pos_embed(self.backbone.patch_embed(pixels))
        return positioned if isinstance(positioned, tuple) else (positioned, None)

    def step(self, number: int, state: Tensor, context: Any) -> Tensor:
        if number == 0:
            state = self.backbone.norm_pre(state)
        if context is None:
            return self.blocks[number](state)
        rotary = context[number] if getattr(self.backbone, "rope_mixed", False) else context
        return self.blocks[number](state, rope=rotary)

    def normalise(self, state: Tensor) -> Tensor:
        return self.backbone.norm(state)

    def summarise(self, state: Tensor) -> Tensor:
        """timm's own pooling."""
        return self.backbone.forward_head(self.normalise(state), pre_logits=True)


class EVAEncoder(TimmEncoder):
    """EVA and EVA-02 as CLIP encoders. Layer -1 is the output of the last block without the final norm."""

    interpolation = "bilinear"
    antialias_prescale = False
    mean, std = CLIP_MEAN, CLIP_STD

    def normalise(self, state: Tensor) -> Tensor:
        return state

    def summarise(self, state: Tensor) -> Tensor:
        """The first token of the last block, or the mean of the patches where there is no class token."""
        return state[:, 0] if self.prefix_tokens else state.mean(1)
