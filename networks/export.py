"""The decoder as a graph that runs without this project: a program of PyTorch, or ONNX."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from common.errors import UserError
from networks.checkpoint.loading import Tokenizer

ONNX_OPSET = 20
INPUT, OUTPUT = "latent", "images"
CONFIG_FILE = "config.json"  # inside a `.pt2` file


class ImageDecoder(nn.Module):
    """What an exported graph computes: raw latent [B, C, h, w] -> images [B, 3, H, W], nominally in [-1, 1]."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.decoder = tokenizer.decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z).reconstruction


def export_decoder(tokenizer: Tokenizer, height: int, width: int) -> ExportedProgram:
    """The decoder in fp32 as a program for one image size and any batch size.

    Args:
        tokenizer: in eval mode.
        height, width: size of the images in pixels.

    Raises: ShapeError if the size does not fit the tokenizer; UserError if its decoder needs more than a latent.
    """
    if tokenizer.config.conditional:
        raise UserError("decoder.conditional: found true; only decoders that need nothing but a latent are exported.")
    tokenizer.require_image_size(height, width)
    device = next(tokenizer.decoder.parameters()).device
    example = torch.zeros(2, *tokenizer.latent_shape(height, width), device=device)
    with torch.no_grad():
        return torch.export.export(ImageDecoder(tokenizer).eval(), (example,), dynamic_shapes=({0: Dim("batch")},))


def save_program(program: ExportedProgram, path: str | Path, tokenizer: Tokenizer) -> None:
    """Write a program as a `.pt2` file, which `torch.export.load` reads; the configuration goes into it as JSON."""
    config = json.dumps(tokenizer.config.model_dump(mode="json"))
    with open(path, "wb") as file:  # of a path torch expects the ending, which a file in the making does not have
        torch.export.save(program, file, extra_files={CONFIG_FILE: config})


def save_onnx(program: ExportedProgram, path: str | Path) -> None:
    """Write a program as one ONNX file with the input `latent` and the output `images`.

    Raises: UserError if the packages that this needs are not installed.
    """
    try:
        import onnxscript  # noqa: F401  (torch imports it later, with a less helpful message)
    except ImportError as error:
        raise UserError("writing ONNX needs two more packages: pip install onnx onnxscript") from error
    exported = torch.onnx.export(
        program, opset_version=ONNX_OPSET, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
    )
    assert exported is not None
    exported.save(str(path), external_data=False)
