"""The random target encoder of the digits experiment: what it says depends on the image, and it is written once."""

from __future__ import annotations

import torch

from networks.diffusion.target_features import load_target_encoders
from networks.encoders.random_dinov2 import WIDTH, write_random_dinov2


def test_class_tokens_of_a_random_dinov2_tell_images_apart(tmp_path) -> None:
    write_random_dinov2(tmp_path / "encoder")
    written = (tmp_path / "encoder" / "model.safetensors").stat().st_mtime_ns
    write_random_dinov2(tmp_path / "encoder")
    assert (tmp_path / "encoder" / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = load_target_encoders([str(tmp_path / "encoder")], side=4)(images)
    assert features.tokens[0].shape == (8, 1 + 16, WIDTH)
    assert features.class_token.std(dim=0).mean() > 0.05


def test_equal_seeds_give_equal_weights(tmp_path) -> None:
    for name in ("a", "b"):
        write_random_dinov2(tmp_path / name)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
