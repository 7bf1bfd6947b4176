"""How much the systems compute, exactly: whoever makes a pass or a step dearer has to say so here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import Source
from common.registry import import_object
from configs.schema import check, load_config
from evaluation.cost import count_flops
from networks.encoders.loading import empty_encoder
from networks.vfm_vae import VFMVAETokenizer
from tests.tiny import tiny_values, tiny_vfmtok_values
from tests.trainer.ar.tiny_runs import run_values
from tests.trainer.conftest import merged
from tests.trainer.test_adversarial import STYLEGAN_T
from trainer.benchmarks import BENCHMARKS
from trainer.benchmarks.plan import Request
from trainer.systems import SYSTEMS

SIGLIP2_LARGE_512 = {
    "model_type": "siglip",
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 512,
        "patch_size": 16,
    },
}


def flops(values: dict[str, Any], *parts: str) -> dict[str, int]:
    """Of some parts on 2 samples."""
    config = check(Source("tiny.yaml", values)).config
    request = Request(config, torch.device("cpu"), 2, Path("scratch"), False)
    plan = import_object(BENCHMARKS[config.system])(request)
    return {name: count_flops(plan.parts[name].run) for name in parts}


def test_every_system_has_a_benchmark():
    assert set(BENCHMARKS) == set(SYSTEMS)


def test_vfm_vae_computes_no_more_than_it_did(tiny_encoder, tmp_path):
    values = merged(tiny_values(tiny_encoder, tmp_path, tmp_path), {"data.resolution": 32, "decoder.num_blocks": 3})
    values["losses"]["multiscale_pixel"] = {"weights": {16: 0.1, 8: 0.1}}
    counts = {"encode": 20_189_184, "decode": 59_490_816, "step": 224_368_128}
    assert flops(values, *counts) == counts


@pytest.mark.parametrize(
    ("switches", "count"),
    [
        ({}, 1_041_987_072),
        ({"training.share_decoder_backward": True}, 968_070_144),
        ({"training.share_decoder_backward": True, "training.share_generator_forward": True}, 898_613_760),
    ],
)
def test_a_step_against_a_discriminator_computes_no_more_than_it_did(tiny_encoder, tmp_path, switches, count):
    changes = {
        "data.resolution": 32,
        "decoder.num_blocks": 3,
        "losses.multiscale_pixel": None,
        **STYLEGAN_T,
        **switches,
    }
    assert flops(merged(tiny_values(tiny_encoder, tmp_path, tmp_path), changes), "step") == {"step": count}


def test_vfmtok_computes_no_more_than_it_did(tiny_encoder, tmp_path):
    values = tiny_vfmtok_values(tiny_encoder, tmp_path, tmp_path)
    counts = {"encode": 4_257_792, "decode": 373_838_336, "semantic_pass": 2_527_744, "step": 1_138_875_392}
    assert flops(values, *counts) == counts


def test_an_autoregressive_model_computes_no_more_than_it_did(tmp_path):
    counts = {"sample": 1_007_616, "sample_half": 503_808, "step": 1_544_192}
    assert flops(run_values(tmp_path, tmp_path), *counts) == counts


def test_the_published_tokenizer_computes_no_more_than_it_did(tmp_path):
    folder = tmp_path / "siglip2-large-patch16-512"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SIGLIP2_LARGE_512))
    published = Path("configs/vfm_vae_f16d32_siglip2_stage_0_strong_alignment.yaml")
    config = load_config(published, [f"encoder.vfm_name={folder}"]).config
    with torch.device("meta"):
        model = VFMVAETokenizer(config.tokenizer(), empty_encoder(config.encoder)).requires_grad_(False)
        images, z = torch.empty(1, 3, 256, 256), torch.empty(1, 32, 16, 16)
    counts = {"encode": count_flops(lambda: model.encode(images)), "decode": count_flops(lambda: model.decode(z))}
    assert counts == {"encode": 757_120_106_496, "decode": 388_129_013_760}
