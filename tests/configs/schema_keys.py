"""Every dotted key of a configuration model."""

from __future__ import annotations

from common.config import StrictModel, section_class


def schema_keys(model: type[StrictModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        section = section_class(info.annotation)
        keys += schema_keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return keys
