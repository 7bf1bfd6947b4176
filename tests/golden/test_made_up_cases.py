"""Cases of kinds that none was measured for, made by a plain second implementation and checked as any other case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from networks.checkpoint import to_reference_name
from networks.vfm_vae import VFMVAETokenizer
from tests.golden.cases import Case, collect, fill, load_filled
from tests.golden.check_encoders import build_encoder
from tests.golden.check_networks import check_tiny, tokenizer_config
from tests.golden.plain_decoder import plain_decode
from tests.tiny import SIGLIP

VFM = {"family": "siglip2", "config_class": "SiglipVisionConfig", "transformers_class": "SiglipVisionModel"}
GENERATOR = {
    "conditional": True,
    "label_type": "cls2id",
    "label_dim": 5,
    "vfm_name": "siglip2-patch8",
    "scale_factor": 1.0,
    "patch_from_layers": [1, -1],
    "patch_in_dimensions": [32, 32],
    "patch_out_dimensions": [8, 8],
    "compression_mode": "continuous",
    "how_to_compress": "conv",
    "how_to_decompress": "conv",
    "decompress_factor": 4,
    "resolution_compression_factor": 8,
    "z_dimension": 4,
    "z_pooled_resolution": 2,
    "z_dim_for_mapping_mlp_output": 12,
    "concat_z_block_indices": [0, 1, 2],
    "concat_z_mapped_dims": [32, 16, 8],
    "use_convnext": False,
    "img_resolution": 32,
    "num_blocks": 4,
    "conv_clamp": 3,
    "synthesis_kwargs": {"channel_base": 8192, "channel_max": 64, "num_res_blocks": 1},
}


@torch.no_grad()
def write_case(folder: Path, options: dict[str, Any]) -> Case:
    """A case whose decoder is the plain one. Everything in front of the decoder is the tokenizer's own."""
    facts = {"vfm": {**VFM, "config": SIGLIP}, "generator_kwargs": options}
    config = tokenizer_config(options, facts["vfm"])
    encoder = build_encoder(facts["vfm"], config.encoder.patch_from_layers, config.encoder.scale_factor)
    model = VFMVAETokenizer(config, encoder).eval()
    front = {n: v for n, v in model.state_dict().items() if not n.startswith("decoder.") or ".expansion." in n}
    names = {name: to_reference_name(name, family="siglip2") for name in front}
    entries = [[names[name], list(value.shape), "float32", True] for name, value in front.items()]
    state = {name: fill(names[name], list(value.shape)) for name, value in front.items()}
    load_filled(model, model.state_dict() | state)

    def weights(name: str, shape: list[int]) -> Tensor:
        filled = name.rsplit(".", 1)[-1] not in ("resample_filter", "blur_weight")
        entries.append([name, shape, "float32", filled])
        return fill(name, shape)

    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    c = torch.eye(options["label_dim"])[[3, 1]] if options["conditional"] else None
    expanded = model.decoder.expansion(model.encode(images).posterior.mode())
    plain = plain_decode(expanded, c, options, weights)
    tensors = {"img": images, "w": plain.w, "decode_img": plain.images[-1]} | ({} if c is None else {"c": c})
    tensors |= {f"decode_multiscale_{i}": image for i, image in enumerate(reversed(plain.images[:-1]))}
    facts |= {"state_dict": entries, "num_ws": options["num_blocks"] * (2 + 2 * 1)}
    (folder / "networks_tiny_made_up.json").write_text(json.dumps(facts), encoding="utf-8")
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "networks_tiny_made_up.safetensors"
    )
    (case,) = collect(folder)
    return case


@pytest.mark.parametrize(
    "changes",
    [
        {"use_multiscale_output": True},
        {"use_multiscale_output": False},
        {"use_multiscale_output": True, "conditional": False, "label_type": "cls2text"},
    ],
    ids=["classes, summed features", "classes, summed images", "unconditional"],
)
def test_decoder_without_convnext_layers_agrees_with_a_plain_one(changes: dict[str, Any], tmp_path: Path) -> None:
    case = write_case(tmp_path, GENERATOR | changes)
    check_tiny(case)
    assert case.compared == 5
