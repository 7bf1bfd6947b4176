"""Sample grids: inputs beside their reconstructions, as a PNG."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from common.files import write_atomically

COLUMNS = 8


def save_grid(inputs: Tensor, outputs: Tensor, path: Path, columns: int = COLUMNS) -> None:
    """Write rows of inputs, each above the row of its outputs.

    Args:
        inputs, outputs: [N, 3, H, W] uint8, of one size.
        columns: images per row, if there are so many.
    """
    from PIL import Image
    from torchvision.utils import make_grid

    columns = min(columns, len(inputs))
    missing = -len(inputs) % columns
    white = torch.full((missing, *inputs.shape[1:]), 255, dtype=torch.uint8)
    rows = [
        row
        for pair in zip(torch.cat([inputs, white]).split(columns), torch.cat([outputs.cpu(), white]).split(columns))
        for row in pair
    ]
    grid = torch.cat([make_grid(row, nrow=columns, padding=2, pad_value=255) for row in rows], dim=1)
    image = Image.fromarray(grid.movedim(0, -1).numpy())
    write_atomically(path, lambda partial: image.save(partial, format="PNG"))
