"""Networks compute tensors: encoders, bottleneck, decoder. Import what you need from the modules.

`VFMVAE`, the model for users, is also here; it is imported when it is asked for.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "VFMVAE":
        from networks.autoencoder import VFMVAE

        return VFMVAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
