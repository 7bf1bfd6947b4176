"""Encoders of the transformers library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import nn

from common.errors import UserError, first_line
from networks.encoders.recognition import model_config_of, model_source
from networks.encoders.vit import ViTEncoder


def load_pretrained(
    vfm_name: str,
    revision: str | None,
    model_class: Callable[[dict[str, Any]], Any],
    file_prefix: str | None = None,
) -> nn.Module:
    """A whole model of the library from a folder or a hub id, fp32.

    Args:
        model_class: from the model's `config.json` to the library's class.
        file_prefix: regular expression of a prefix that the weights carry in the file alone.

    Raises: UserError if it cannot be loaded, or lacks weights, which the library would leave random.
    """
    from transformers import PreTrainedConfig

    source = model_source(vfm_name)
    try:
        values, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        with _without_warnings():
            model, info = model_class(values).from_pretrained(
                source,
                revision=revision,
                dtype=torch.float32,
                key_mapping={file_prefix: ""} if file_prefix else None,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"encoder.vfm_name: {vfm_name!r} could not be loaded ({first_line(error)}). Give a folder that holds "
            f"config.json and weights, e.g. made with `hf download {vfm_name} --local-dir ...`."
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"encoder.vfm_name: {vfm_name!r} lacks {len(missing)} weights of {type(model).__name__}, "
            f"e.g. {missing[0]}; they would stay random. Give the folder of a complete model of this family."
        )
    return model


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """The library lists what a whole model has for its other tower; what is missing is refused anyway."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


class TransformersViT(ViTEncoder):
    """A vision transformer of the transformers library, from a folder or a hub id.

    Attributes of a family:
        model_classes: the `model_type`s of a model's `config.json`, each with the library's class for it.
        file_prefix: regular expression of a prefix that the weights carry in the file alone.
    """

    model_classes: ClassVar[tuple[tuple[str, str], ...]] = ()
    file_prefix: ClassVar[str | None] = None

    @classmethod
    def model_class(cls, values: dict[str, Any], vfm_name: str) -> Any:
        """The library's class for a model's config. Raises UserError if it is not of this family."""
        import transformers

        classes, model_type = dict(cls.model_classes), values.get("model_type")
        if model_type not in classes:
            raise UserError(
                f"encoder.vfm_name: {vfm_name!r} has the model_type {model_type!r}, expected "
                f"{' or '.join(classes)} for this family; set encoder.family to the right one, or null."
            )
        return getattr(transformers, classes[model_type])

    @classmethod
    def load_backbone(cls, vfm_name: str, revision: str | None) -> nn.Module:
        return load_pretrained(vfm_name, revision, lambda values: cls.model_class(values, vfm_name), cls.file_prefix)

    @classmethod
    def empty_backbone(cls, vfm_name: str, revision: str | None) -> nn.Module | None:
        values = model_config_of(vfm_name, revision)
        if values is None:
            return None
        model_class = cls.model_class(values, vfm_name)
        return model_class(model_class.config_class.from_dict(values.get("vision_config", values)))

    @property
    def patch_size(self) -> int:
        return self.backbone.config.patch_size

    def layer_channels(self, layer: int) -> int:
        return self.backbone.config.hidden_size
