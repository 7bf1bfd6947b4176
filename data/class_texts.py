"""Texts of the ImageNet-1k classes."""

from __future__ import annotations

# Two pairs of classes share a name; the published list tells the cranes apart.
_DISTINGUISHED = {134: "crane(bird)", 517: "crane(machine)"}


def imagenet_class_texts() -> dict[str, str]:
    """Class index ("0" .. "999") -> comma-separated synonyms, from timm's ImageNet information.

    The order is the usual one of ILSVRC: "0" is the tench, "999" toilet tissue.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return {str(index): _DISTINGUISHED.get(index, info.index_to_description(index)) for index in range(1000)}


def imagenet_synsets() -> list[str]:
    """WordNet ids of the ImageNet-1k classes in the order of their indices: `n01440764` is class 0."""
    from timm.data import ImageNetInfo

    return ImageNetInfo().label_names()
