"""Whether weights fit a module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What keeps weights from fitting a state dict: entries missing, unexpected, misshapen; empty if none."""
    shapes = [
        f"{name} is {list(given[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    missing, unexpected = ([name for name in a if name not in b] for a, b in ((own, given), (given, own)))
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return "; ".join(f"{len(found)} {kind}, e.g. {found[0]}" for kind, found in kinds if found)
