"""What a checkpoint or a result says of weights that it does not hold: a hash of their names and values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor


def weights_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over the names and values of weights, whatever file they came from.

    Args:
        state: a state dict; floating-point values count in fp32, in which weights are kept.
    """
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        value = value.float() if value.is_floating_point() else value
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).numpy())
    return digest.hexdigest()
