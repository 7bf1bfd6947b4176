"""The discriminators as a whole, on the small random backbone."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional as F

from common.errors import ShapeError
from networks.config import DiscriminatorConfig
from networks.discriminators.discriminators import Discriminators
from networks.discriminators.loading import build_discriminators, load_backbone
from networks.discriminators.stylegan2 import StyleGAN2Discriminator


def tiny(label_dim: int = 0, resolution: int | None = None, **options) -> Discriminators:
    defaults = {"use_stylegan_t_discriminator": True, "backbone": "random_tiny"}
    torch.manual_seed(0)
    config = DiscriminatorConfig(**(defaults | options))
    return build_discriminators(config, "bilinear", label_dim, resolution=resolution)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_step_of_both_phases_reaches_what_each_trains_and_nothing_else() -> None:
    model = tiny(use_patchgan_discriminator=True, get_interm_feat=True).train()
    fake, real = (torch.rand(2, 3, 64, 64) * 2 - 1 for _ in range(2))
    verdicts = [model(x, generator=seeded(i), update_norms=True) for i, x in enumerate((fake, real))]
    judged = [v.projected.relu().mean() + sum(outputs[-1].mean() for outputs in v.patches) for v in verdicts]
    (judged[0] - judged[1]).backward()
    trained = dict(model.trainable_parts().named_parameters())
    assert all(p.grad is not None for p in trained.values())
    assert all(p.grad is None and not p.requires_grad for p in model.projected.backbone.parameters())
    assert len(trained) + len(list(model.projected.backbone.parameters())) == len(list(model.parameters()))
    model.trainable_parts().requires_grad_(False)
    fake.requires_grad_()
    verdict = model(fake, generator=seeded(2))
    (verdict.projected.mean() + verdict.patches[0][-1].mean()).backward()
    assert fake.grad.abs().sum() > 0
    assert model.projected.backbone.training is False


def test_shapes_of_a_verdict() -> None:
    images = torch.zeros(2, 3, 64, 64)
    verdict = tiny(use_patchgan_discriminator=True, get_interm_feat=True)(images)
    assert verdict.projected.shape == (2, 5 * 64)
    assert [[x.shape[-1] for x in outputs] for outputs in verdict.patches] == [
        [33, 17, 9, 10, 11],
        [17, 9, 5, 6, 7],
        [9, 5, 3, 4, 5],
    ]
    verdict = tiny(use_stylegan_t_discriminator=False, use_patchgan_discriminator=True)(images)
    assert verdict.projected is None
    assert [[x.shape[1] for x in outputs] for outputs in verdict.patches] == [[1], [1], [1]]
    assert tiny()(images).patches is None
    verdict = tiny(use_stylegan_t_discriminator=False, use_stylegan2_discriminator=True, resolution=64)(images)
    assert [list(logits.shape) for logits in verdict.logits()] == [[2, 1]]


def test_the_same_weights_answer_with_and_without_intermediate_features() -> None:
    options = {"use_stylegan_t_discriminator": False, "use_patchgan_discriminator": True}
    with_features, without = tiny(**options, get_interm_feat=True), tiny(**options)
    without.load_state_dict(with_features.state_dict())
    images = torch.rand(2, 3, 32, 32)
    for kept, alone in zip(with_features(images).patches, without(images).patches, strict=True):
        assert torch.equal(kept[-1], alone[0])


def test_draws_follow_the_generator_and_without_one_there_are_none() -> None:
    model = tiny(p_crop=1.0).eval()
    images = torch.rand(2, 3, 96, 96) * 2 - 1
    with torch.no_grad():
        once, again, other = (model(images, generator=seeded(seed)).projected for seed in (0, 0, 1))
        assert torch.equal(once, again)
        assert not torch.equal(once, other)
        assert torch.equal(
            model(images).projected, tiny(diffaug=False, p_crop=0.0)(images, generator=seeded(0)).projected
        )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [48, 64, 96])
def test_images_are_resized_to_the_backbone_and_antialiased_only_when_they_shrink(
    side: int, interpolation: str
) -> None:
    model = tiny(diffaug=False, p_crop=0.0)
    model.projected.interpolation = interpolation
    images = torch.rand(1, 3, side, side) * 2 - 1
    resized = F.interpolate(images, size=64, mode=interpolation, align_corners=False, antialias=side > 64)
    seen = []
    model.projected.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images, generator=seeded(0))
    projected = model.projected
    assert torch.allclose(seen[0], ((resized + 1) / 2 - projected.pixel_mean) / projected.pixel_std, atol=1e-5)


def test_larger_images_are_cropped_at_one_place_per_batch_and_smaller_ones_never() -> None:
    model = tiny(diffaug=False, p_crop=1.0)
    seen = []
    model.projected.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rows, columns = torch.meshgrid(torch.arange(80.0), torch.arange(80.0), indexing="ij")
    images = torch.stack([rows, columns, rows + columns]).expand(2, -1, -1, -1)
    for seed in range(20):
        model(images, generator=seeded(seed))
    pixels = [x * model.projected.pixel_std + model.projected.pixel_mean for x in seen]
    corners = {tuple((2 * x[0, :2, 0, 0] - 1).round().int().tolist()) for x in pixels}
    assert len(corners) > 10
    assert all(0 <= row <= 16 and 0 <= column <= 16 for row, column in corners)
    assert all(torch.equal(x[0], x[1]) for x in seen)
    small = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(small, generator=seeded(0)).projected, model(small).projected)


def test_labels_condition_the_projected_discriminator() -> None:
    model = tiny(label_dim=4)
    images = torch.rand(1, 3, 64, 64).expand(2, -1, -1, -1)
    logits = model(images, torch.eye(4)[:2]).projected
    assert not torch.allclose(logits[0], logits[1])


def test_images_that_it_cannot_judge_are_refused_with_their_shape() -> None:
    with pytest.raises(ShapeError, match=r"found images \[2, 3, 64, 32\], expected square ones"):
        tiny()(torch.zeros(2, 3, 64, 32))
    with pytest.raises(ShapeError, match="found a batch of 11 images"):
        tiny()(torch.zeros(11, 3, 64, 64))


def test_verdicts_are_computed_in_fp32_also_under_autocast() -> None:
    model = tiny(use_patchgan_discriminator=True)
    images = (torch.rand(2, 3, 64, 64) * 2 - 1).bfloat16()
    with torch.no_grad():
        expected = model(images.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(images)
    assert all(logits.dtype == torch.float32 for logits in found.logits())
    assert all(torch.equal(one, two) for one, two in zip(found.logits(), expected.logits(), strict=True))


# --- VFMTok's projected discriminator --------------------------------------------------------------------------------


VFMTOK = {"projected_kind": "vfmtok", "diffaug": False}


def pixels_seen(model: Discriminators, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """What the backbone gets, back in [-1, 1]."""
    seen = []
    hook = model.projected.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images, generator=generator)
    hook.remove()
    return (seen[0] * model.projected.pixel_std + model.projected.pixel_mean) * 2 - 1


@pytest.mark.parametrize(("side", "mode"), [(48, "bicubic"), (64, None), (96, "area"), (128, "area")])
def test_vfmtok_averages_larger_images_and_enlarges_smaller_ones_bicubically(side: int, mode: str | None) -> None:
    model, images = tiny(**VFMTOK, p_crop=0.0), torch.rand(1, 3, side, side) * 2 - 1
    expected = images
    if mode:
        expected = F.interpolate(images, 64, mode=mode, **({} if mode == "area" else {"align_corners": False}))
    assert torch.allclose(pixels_seen(model, images, seeded(0)), expected, atol=1e-5)


def test_vfmtok_crops_half_of_the_larger_batches() -> None:
    model, images = tiny(**VFMTOK), torch.rand(1, 3, 80, 80) * 2 - 1
    whole = pixels_seen(model, images, None)
    cropped = sum(not torch.allclose(pixels_seen(model, images, seeded(seed)), whole) for seed in range(100))
    assert 35 <= cropped <= 65


def test_vfmtok_reads_the_embedding_first_through_a_backbone_with_the_approximate_gelu() -> None:
    kinds = {kind: tiny(projected_kind=kind, diffaug=False) for kind in ("stylegan_t", "vfmtok")}
    read = {kind: [] for kind in kinds}
    for kind, model in kinds.items():
        for head in model.projected.heads:
            head.register_forward_pre_hook(lambda _, inputs, kind=kind: read[kind].append(inputs[0]))
        with torch.no_grad():
            model(torch.rand(1, 3, 64, 64, generator=seeded(0)) * 2 - 1)
    *of_blocks, embedding = read["stylegan_t"]
    assert torch.equal(read["vfmtok"][0], embedding)
    for exact, approximate in zip(of_blocks, read["vfmtok"][1:], strict=True):
        assert 0 < (exact - approximate).abs().max() < 0.05
    assert {kind: {head.first.norm.eps for head in m.projected.heads} for kind, m in kinds.items()} == {
        "stylegan_t": {1e-5},
        "vfmtok": {1e-6},
    }


# --- the StyleGAN2-like discriminator --------------------------------------------------------------------------------


def test_stylegan2_reaches_four_pixels_from_any_side() -> None:
    with torch.device("meta"):
        nets = {side: StyleGAN2Discriminator(side) for side in (4, 8, 32, 48, 256, 336, 512)}
    widths = {side: [net.stem.out_channels, *(b.down.out_channels for b in net.blocks)] for side, net in nets.items()}
    assert widths == {
        4: [512],
        8: [512, 512],
        32: [512] * 4,
        48: [256, *[512] * 3],
        256: [64, 128, 256, *[512] * 4],
        336: [64, 128, 256, *[512] * 4],
        512: [32, 64, 128, 256, *[512] * 4],
    }
    for side, net in nets.items():
        assert net(torch.empty(2, 3, side, side, device="meta")).shape == (2, 1)


def test_every_weight_of_stylegan2_learns_and_every_pixel_counts() -> None:
    torch.manual_seed(0)
    net, images = StyleGAN2Discriminator(20), torch.randn(2, 3, 20, 20).requires_grad_()
    net(images).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    assert (images.grad.abs().sum(1) > 0).all()


def test_stylegan2_refuses_another_side() -> None:
    with torch.device("meta"):
        net = StyleGAN2Discriminator(16)
    with pytest.raises(ShapeError, match=r"found images \[1, 3, 8, 8\], expected a side of 16 pixels"):
        net(torch.zeros(1, 3, 8, 8))


# --- the random backbone -------------------------------------------------------------------------------------------


def test_the_random_backbone_is_the_same_in_every_run_and_the_log_says_what_it_is(caplog) -> None:
    config = DiscriminatorConfig(use_stylegan_t_discriminator=True, backbone="random_tiny")
    with caplog.at_level(logging.WARNING):
        states = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            states.append(load_backbone(config).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert "discriminator.backbone is random_tiny" in caplog.text
    assert "say nothing about quality" in caplog.text


def test_every_depth_of_the_random_backbone_sees_something_else() -> None:
    backbone = load_backbone(DiscriminatorConfig(backbone="random_tiny"))
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 64))
    directions = F.normalize(torch.stack([f.flatten() - f.mean() for f in features]), dim=1)
    similarity = directions @ directions.T
    assert similarity.fill_diagonal_(0).max() < 0.95
