"""A tokenizer on each encoder family: configured, estimated, trained; grids of its layers may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import Source
from common.errors import ConfigError, ShapeError
from configs.schema import check
from networks.encoders.loading import load_encoder
from networks.vfm_vae import VFMVAETokenizer
from tests.networks.tiny_encoders import TINY
from tests.tiny import tiny_values
from tests.trainer.conftest import merged
from trainer.dry_run import describe

FAMILIES = [name for name, tiny in TINY.items() if tiny.family is None]


def values_of(name: str, folder: Path | str, data: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    """A configuration for 64 px and a latent of 8 x 8; the encoder sees twice as many patches per side."""
    tiny = TINY[name]
    encoder = {
        "encoder.vfm_name": str(folder),
        "encoder.scale_factor": tiny.patch * 16 / 64,
        "encoder.patch_in_dimensions": tiny.widths([0, 2, -1]),
        "latent.patch_out_dimensions": [8, 8, 8 if tiny.merge > 1 else 16],
    }
    return merged(tiny_values(folder, data, run_dir), {**encoder, **changes})


@pytest.mark.parametrize("name", FAMILIES)
def test_tokenizer_encodes_rectangles_and_trains_on_each_family(name: str, folders, tiny_data, tmp_path) -> None:
    config = check(Source("tiny.yaml", values_of(name, folders[name], tiny_data, tmp_path))).config
    model = VFMVAETokenizer(config.tokenizer(), load_encoder(config.encoder))
    output = model(torch.rand(2, 3, 64, 32), torch.Generator().manual_seed(0))
    assert output.latent.z.shape == (2, 4, 8, 4)
    assert output.decoded.reconstruction.shape == (2, 3, 64, 32)
    output.decoded.reconstruction.square().mean().backward()
    assert all(projection.blocks[0].mlp.out.weight.grad.any() for projection in model.compression.projections)


@pytest.fixture
def known_speed(monkeypatch) -> None:
    """Spare the measurement of this machine's speed, which each dry run makes."""
    monkeypatch.setattr("trainer.dry_run.gemm_flops_per_second", lambda device: 1e12)


@pytest.mark.usefixtures("known_speed")
@pytest.mark.parametrize("name", ["mae", "qwen", "eva"])
def test_dry_run_estimates_a_family_from_its_config_alone(name: str, folders, tiny_data, tmp_path) -> None:
    text = describe(check(Source("tiny.yaml", values_of(name, folders[name], tiny_data, tmp_path))).config, ranks=1)
    assert "unknown" not in text
    assert f"encoder               {name}, layers [0, 2, -1]" in text


@pytest.mark.usefixtures("known_speed")
def test_dry_run_says_unknown_where_an_encoder_is_out_of_reach(tiny_data, tmp_path) -> None:
    values = values_of("qwen", "Qwen/Qwen2.5-VL-patch4", tiny_data, tmp_path)
    text = describe(check(Source("tiny.yaml", values)).config, ranks=1)
    assert "frozen encoder        unknown" in text


# --- a family whose last layer has a coarser grid --------------------------------------------------------------------


def test_layers_of_different_grids_meet_at_the_latents(folders, tiny_data, tmp_path) -> None:
    config = check(Source("tiny.yaml", values_of("qwen", folders["qwen"], tiny_data, tmp_path))).config.tokenizer()
    assert config.encoder.patch_sizes() == [4, 4, 8]
    assert config.encoder.token_sides(64) == [16, 16, 8]
    model = VFMVAETokenizer(config, load_encoder(config.encoder))
    assert model.compression.unshuffle == [2, 2, 1]
    features = model.encoder(torch.rand(1, 3, 64, 64))
    assert features.grids == [(16, 16), (16, 16), (8, 8)]
    assert model.fuse(features).z.shape == (1, 4, 8, 8)
    with pytest.raises(ShapeError, match="expected both sides to be multiples of 2"):
        model.compression(type(features)([level[:, :9] for level in features.levels], [(3, 3)] * 3))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"encoder.scale_factor": 0.5},
            "the encoder's grid of layer -1 at 64 pixels is 4 x 4 tokens (scale_factor 0.5",
        ),
        ({"encoder.scale_factor": 1.0625}, "1.0625 = 68 pixels is not divisible by the patch size 8"),
        (
            {"latent.patch_out_dimensions": [8, 8, 12]},
            "the fused layers have 76 channels (8 x 4 + 8 x 4 + 12 x 1) and the head 8",
        ),
    ],
)
def test_geometry_that_does_not_fit_is_reported_with_its_layer(changes, problem, folders, tiny_data, tmp_path) -> None:
    with pytest.raises(ConfigError) as error:
        check(Source("tiny.yaml", values_of("qwen", folders["qwen"], tiny_data, tmp_path, **changes)))
    assert problem in " ".join(str(error.value).split())
