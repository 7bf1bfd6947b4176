"""Runs of autoregressive models in small: made-up tokens, a tiny tokenizer, and a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from common.config import Source
from configs.schema import check
from tests.tiny import DISCRETE, SMALL, fill_weights, tiny_values
from tests.trainer.conftest import merged

CODES, SIDE, CLASSES, IMAGES, VIEWS = 12, 4, 3, 10, 2
NETWORK: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 2,
    "dim": 16,
    "multiple_of": 8,
    "vocab_size": CODES,
    "block_size": SIDE**2,
    "num_classes": CLASSES,
    "class_dropout_prob": 0.3,
}


def write_tokens(folder: Path, tokens: torch.Tensor | None = None, **plan: Any) -> Path:
    """What the prefetch would have written, in two files; the tokens of an image say its class."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = torch.arange(IMAGES) % CLASSES
    if tokens is None:
        noise = torch.randint(0, 3, (IMAGES, VIEWS, SIDE**2), generator=torch.Generator().manual_seed(0))
        tokens = noise + 4 * labels[:, None, None]
    files = []
    for number, rows in enumerate((slice(0, 6), slice(6, IMAGES))):
        path = folder / f"tokens_rank00_shard{number:03d}.safetensors"
        save_file({"tokens": tokens[rows].to(torch.uint16).contiguous(), "labels": labels[rows].contiguous()}, path)
        files.append({"name": path.name, "bytes": path.stat().st_size, "sha256": str(number)})
    kind = {"codes": CODES, "grid": [SIDE, SIDE], "tokenizer_sha256": "a" * 64}
    index = {"status": "complete", "plan": {**kind, **plan}, "files": files}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def run_values(data: Path, run_dir: Path) -> dict[str, Any]:
    """A run of 6 steps of 4 images on tokens; ticks and checkpoints end after steps 1, 3, 5 and 6."""
    return {
        "system": "gpt_c2i",
        "run": {"run_dir": str(run_dir), "random_seed": 3, "device": "cpu"},
        "data": {"path": str(data), "workers": 0},
        "network": dict(NETWORK),
        "optimizer": {"lr": 1e-3},
        "training": {"batch_size": 4, "total_kimg": 0.024, "kimg_per_tick": 0.008, "ema_decay": 0.9},
        "checkpoint": {"network_snapshot_ticks": 1},
    }


def on_images(values: dict[str, Any], data: Path, tokenizer: Path) -> dict[str, Any]:
    """The same run on images of 32 pixels, whose tokens a tokenizer makes in every step."""
    return merged(
        values,
        {
            "data": {"source": "images", "path": str(data), "resolution": 32, "workers": 0},
            "tokenizer": {"vae_pth": str(tokenizer)},
        },
    )


def write_discrete_tokenizer(folder: Path, encoder: Path, **changes: Any) -> Path:
    """A checkpoint of a tiny tokenizer with one codebook of 12 codes: 4 x 4 tokens of an image of 32 pixels."""
    from networks.checkpoint.folder import ModelFolder, write_model_folder
    from networks.vfm_vae import VFMVAETokenizer

    one_book = {"latent.num_codebooks": 1, "latent.vocab_size": CODES}
    values = merged(tiny_values(encoder, folder, folder), {**DISCRETE, **SMALL, **one_book, **changes})
    config = check(Source("tiny.yaml", values)).config.tokenizer()
    model = VFMVAETokenizer(config, encoder=None)
    fill_weights(model)
    facts = {"vfm_name": str(encoder), "sha256": None}
    write_model_folder(folder, ModelFolder(config, model.state_dict(), None, 0, facts))
    return folder
