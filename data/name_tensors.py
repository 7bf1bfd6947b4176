"""Names as a tensor, the form in which shards of latents and feature files carry them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import DataError


def pack_names(names: Sequence[str]) -> Tensor:
    """Names -> uint8 [n, longest]: their UTF-8 bytes, filled up with zeros."""
    encoded = [name.encode("utf-8") for name in names]
    packed = torch.zeros(len(encoded), max(map(len, encoded), default=0), dtype=torch.uint8)
    for row, content in zip(packed, encoded):
        row[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else 0
    return packed


def unpack_names(packed: Tensor) -> list[str]:
    """What `pack_names` packed. Raises: DataError if it is no such tensor."""
    if packed.dtype != torch.uint8 or packed.ndim != 2:
        raise DataError(f"names: found {packed.dtype} of shape {list(packed.shape)}, expected uint8 [n, longest].")
    try:
        return [bytes(row.tolist()).rstrip(b"\0").decode("utf-8") for row in packed]
    except UnicodeDecodeError as error:
        raise DataError(f"names: not UTF-8 ({error}).") from error
