"""Loading an encoder by its configuration."""

from __future__ import annotations

from torch import nn

from common.errors import UserError
from common.registry import import_object
from networks.config import EncoderConfig
from networks.encoders import FAMILIES
from networks.encoders.base import VisionEncoder
from networks.encoders.recognition import model_config_of, resolve_family


def load_vision_encoder(
    vfm_name: str,
    layers: list[int],
    scale_factor: float = 1.0,
    family: str | None = None,
    revision: str | None = None,
) -> VisionEncoder:
    """A frozen encoder on its own, for analysis: what `load_encoder` gives, without having to know its widths.

    Raises: UserError if it cannot be loaded whole, or has no such layer.
    """
    encoder_class: type[VisionEncoder] = import_object(FAMILIES[resolve_family(vfm_name, family, revision)].target)
    return encoder_class(encoder_class.load_backbone(vfm_name, revision), layers, scale_factor)


def empty_vision_encoder(vfm_name: str, layers: list[int]) -> VisionEncoder | None:
    """The same without its pretrained weights, on the current device; None where its files are out of reach."""
    encoder_class: type[VisionEncoder] = import_object(FAMILIES[resolve_family(vfm_name)].target)
    backbone = encoder_class.empty_backbone(vfm_name, None)
    return None if backbone is None else encoder_class(backbone, layers, 1.0)


def load_encoder(config: EncoderConfig, with_text: bool = False) -> VisionEncoder:
    """The frozen encoder that a configuration names, from a local folder, the hub or a package.

    Args:
        with_text: also load the text model that comes with it.

    Raises: UserError if it cannot be loaded whole, or its layers are not what the configuration says.
    """
    encoder_class: type[VisionEncoder] = import_object(FAMILIES[config.resolved_family()].target)
    backbone = encoder_class.load_backbone(config.vfm_name, config.revision)
    encoder = _with_layers(encoder_class, backbone, config)
    if with_text:
        encoder.text_encoder = encoder_class.load_text_encoder(config.vfm_name, config.revision)
    return encoder


def empty_encoder(config: EncoderConfig, with_text: bool = False) -> VisionEncoder | None:
    """The encoder without its pretrained weights: on the meta device to count, elsewhere with random ones.

    Args:
        with_text: also build the text model that comes with it.

    Returns: None where its files, which tell its size, are out of reach.
    Raises: UserError if its layers are not what the configuration says.
    """
    encoder_class: type[VisionEncoder] = import_object(FAMILIES[config.resolved_family()].target)
    backbone = encoder_class.empty_backbone(config.vfm_name, config.revision)
    if backbone is None:
        return None
    encoder = _with_layers(encoder_class, backbone, config)
    if with_text:
        encoder.text_encoder = encoder_class.empty_text_encoder(config.vfm_name, config.revision)
    return encoder


def _with_layers(encoder_class: type[VisionEncoder], backbone: nn.Module, config: EncoderConfig) -> VisionEncoder:
    """The backbone as an encoder that hands out the configured layers."""
    encoder = encoder_class(backbone, config.patch_from_layers, config.scale_factor)
    encoder.model_config = model_config_of(config.vfm_name, config.revision)
    widths = [encoder.layer_channels(layer) for layer in config.patch_from_layers]
    if widths != config.patch_in_dimensions:
        raise UserError(
            f"encoder.patch_in_dimensions: found {config.patch_in_dimensions}, but layers {config.patch_from_layers} "
            f"of {config.vfm_name!r} have {widths} channels; put these numbers there."
        )
    patches = [encoder.layer_patch_size(layer) for layer in config.patch_from_layers]
    if patches != config.patch_sizes():
        raise UserError(
            f"encoder.vfm_name: the name {config.vfm_name!r} suggests patches of {config.patch_sizes()} pixels, but "
            f"the model has {patches}; put it into a folder with its config.json and give that folder."
        )
    return encoder
