"""Whether weights fit a module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor], optional: str | None = None) -> str:
    """What keeps weights from fitting a module's state dict: entries missing, unexpected, misshapen; empty if nothing.

    Args:
        own: state dict of the module, which may be on the meta device.
        given: the weights.
        optional: names with this prefix need not be in both.
    """

    def only_in(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
        return [name for name in a if name not in b and not (optional and name.startswith(optional))]

    shapes = [
        f"{name} is {list(given[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    kinds = (("missing", only_in(own, given)), ("unexpected", only_in(given, own)), ("of another shape", shapes))
    return "; ".join(f"{len(found)} {kind}, e.g. {found[0]}" for kind, found in kinds if found)
