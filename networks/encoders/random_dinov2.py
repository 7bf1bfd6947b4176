"""A small DINOv2 with random weights, on disk as the published ones are: a stand-in where those are not at hand."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from common.random import keyed_seed

WIDTH = 64


def write_random_dinov2(folder: Path, seed: int = 0) -> None:
    """Write 2 blocks of width 64 for patches of 14 pixels, unless the folder is there; it appears whole.

    The weights are drawn wider than the library draws them (1 / √64 in place of 0.02), else the class token would
    hardly depend on the image.
    """
    from transformers import Dinov2Config, Dinov2Model

    if folder.is_dir():
        return
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 56}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "random DINOv2"))
        model = Dinov2Model(Dinov2Config(**shape, patch_size=14, initializer_range=WIDTH**-0.5))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        model.save_pretrained(Path(partial) / "whole")
        (Path(partial) / "whole").rename(folder)
