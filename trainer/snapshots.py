"""Sample grids: inputs beside their reconstructions, as a PNG."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from common.files import write_atomically

COLUMNS = 8


def save_grid(inputs: Tensor, outputs: Tensor, path: Path) -> None:
    """Write rows of inputs, each above the row of its outputs.

    Args:
        inputs, outputs: [N, 3, H, W] uint8; inputs of another side are resized to that of the outputs.
    """
    from PIL import Image
    from torch.nn import functional as F
    from torchvision.utils import make_grid

    outputs = outputs.cpu()
    inputs = inputs.cpu()
    if inputs.shape != outputs.shape:
        inputs = F.interpolate(inputs.float(), size=outputs.shape[-2:], mode="area").round().to(torch.uint8)
    columns = min(COLUMNS, len(inputs))
    rows = []
    for start in range(0, len(inputs), columns):
        rows += [inputs[start : start + columns], outputs[start : start + columns]]
    grid = torch.cat([make_grid(row, nrow=columns, padding=2, pad_value=255) for row in rows if len(row) == columns], 1)
    image = Image.fromarray(grid.movedim(0, -1).numpy())
    write_atomically(path, lambda partial: image.save(partial, format="PNG"))
