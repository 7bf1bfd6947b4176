"""The reference's `.pth` files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from common.errors import CheckpointError
from networks.checkpoint.names import ENCODER_PREFIX, to_own_name

log = logging.getLogger(__name__)


def read_reference_weights(path: str | Path, weights: Literal["ema", "raw"] = "ema") -> dict[str, Tensor]:
    """Weights of a reference `.pth` under own names, without the frozen encoder, which is loaded from its own folder.

    Raises: CheckpointError if the file is missing, would execute code, or holds names that no table knows.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint folder or a reference .pth.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or refused file
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: cannot be read as tensors only ({first_line}); it is never unpickled."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: found {type(content).__name__}, expected a dictionary of tensors.")
    first, second = ("G_ema", "G") if weights == "ema" else ("G", "G_ema")
    state = content.get(first, content.get(second, content))
    dropped = [name for name in state if name.startswith(ENCODER_PREFIX[1])]
    if dropped:
        log.info(
            "%s: left out %d weights of the frozen encoder, which is loaded from its own files.", path, len(dropped)
        )
    try:
        return {to_own_name(name): value for name, value in state.items() if not name.startswith(ENCODER_PREFIX[1])}
    except KeyError as error:
        raise CheckpointError(f"{path}: weight {error} is not one of the reference's generator.") from error
