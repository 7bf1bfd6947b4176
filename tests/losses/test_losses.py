"""Losses by value, and the objective that composes them."""

from __future__ import annotations

import pytest
import torch

from common.errors import ShapeError, UserError
from losses.config import TermConfig
from losses.efficientnet_perceptual import EfficientNetDistance
from losses.interfaces import LossInputs
from losses.lpips import find_trunk, load_lpips, trunk_state
from losses.objective import Objective, total
from losses.schedule import Moment, in_window
from losses.ssim import SSIMLoss
from losses.vf_alignment import vf_alignment_loss
from networks.equivariance import EquivarianceTransform
from tests.golden.cases import HERE, Case
from tests.golden.check_training import filled_lpips_trunk

TERM = TermConfig(weight=1.0)


def golden(name: str) -> Case:
    return Case(HERE / f"{name}.json", name)


def test_vf_loss_refuses_other_channels_with_both_shapes() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 4, 2, 2\) and features \(1, 5, 2, 2\)"):
        vf_alignment_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 5, 2, 2))


def test_no_gradient_reaches_the_frozen_features() -> None:
    features = torch.randn(1, 4, 2, 2, requires_grad=True)
    vf_alignment_loss(torch.randn(1, 4, 2, 2, requires_grad=True), features).backward()
    assert features.grad is None


@pytest.mark.parametrize(("nimg", "counts"), [(0, False), (999, False), (1000, True), (1999, True), (2000, False)])
def test_a_window_contains_its_start_and_not_its_end(nimg: int, counts: bool) -> None:
    assert in_window(TermConfig(weight=1.0, start_kimg=1, end_kimg=2), nimg) is counts


def test_a_term_outside_its_window_is_not_computed_and_leaves_zero_gradients() -> None:
    objective = Objective({"l1_pixel": TermConfig(weight=3.0, start_kimg=1), "l2_pixel": TermConfig(weight=2.0)})
    images = torch.rand(1, 3, 4, 4, requires_grad=True)
    inputs = LossInputs(torch.zeros(1, 3, 4, 4), images)
    values = objective.reconstruction_terms(inputs, Moment(0))
    assert set(values) == {"l2_pixel"}
    assert total(values, touching=[images]).item() == pytest.approx(2 * images.square().mean().item())
    (gradient,) = torch.autograd.grad(total({}, touching=[images]), images)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert set(objective.reconstruction_terms(inputs, Moment(1000))) == {"l1_pixel", "l2_pixel"}


def test_ssim_loss_is_zero_with_a_finite_gradient_on_equal_images_and_flat_ones() -> None:
    loss = SSIMLoss(TERM)
    for target in (torch.rand(1, 3, 12, 12) * 2 - 1, torch.full((1, 3, 12, 12), 0.5)):
        reconstruction = target.clone().requires_grad_()
        value = loss(LossInputs(target, reconstruction))
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert reconstruction.grad.isfinite().all()


def test_ssim_loss_sees_images_clamped_to_their_range() -> None:
    loss = SSIMLoss(TERM)
    target, far = torch.rand(1, 3, 12, 12) * 2 - 1, torch.randn(1, 3, 12, 12) * 3
    assert torch.equal(loss(LossInputs(target, far)), loss(LossInputs(target, far.clamp(-1, 1))))
    far.requires_grad_()
    loss(LossInputs(target, far)).backward()
    assert (far.grad[far.detach().abs() > 1] == 0).all()


def test_lpips_without_its_trunk_names_the_file_and_the_key(tmp_path) -> None:
    with pytest.raises(UserError) as error:
        find_trunk(str(tmp_path / "vgg.pth"))
    text = str(error.value)
    assert "losses.perceptual.vgg16_path" in text
    assert "vgg16-397923af.pth" in text
    assert "never downloaded" in text


def test_lpips_refuses_a_file_of_another_network() -> None:
    with pytest.raises(UserError, match="not torchvision's VGG16"):
        trunk_state({"features.0.weight": torch.zeros(1)}, "file.pth")


def test_lpips_names_a_damaged_trunk(tmp_path) -> None:
    (tmp_path / "vgg.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"vgg\.pth: is cut off"):
        load_lpips(str(tmp_path / "vgg.pth"))


def test_efficientnet_distance_grows_with_blur_and_noise() -> None:
    from skimage.data import astronaut

    from common.value_range import uint8_to_unit, unit_to_signed

    pixels = torch.from_numpy(astronaut()[:128, 160:288].copy()).movedim(-1, 0)[None]
    image = unit_to_signed(uint8_to_unit(pixels))
    distance = EfficientNetDistance()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = distance(image, image).item()
        noisy = [distance(image, (image + level * noise).clamp(-1, 1)).item() for level in (0.05, 0.2)]
        blurred = [
            distance(image, torch.nn.functional.avg_pool2d(image, k, 1, k // 2, count_include_pad=False)).item()
            for k in (3, 7)
        ]
    assert same == pytest.approx(0, abs=1e-6)
    assert 0 < noisy[0] < noisy[1]
    assert 0 < blurred[0] < blurred[1]


def test_target_transform_matches_the_turn_of_the_latent() -> None:
    images = torch.rand(1, 3, 8, 8)
    transform = EquivarianceTransform(1.0, 1)
    assert torch.equal(transform.apply_to_target(images, "bilinear"), transform.apply_to_latent(images))
    clockwise = images.flip(-2).transpose(-1, -2)
    assert torch.equal(transform.apply_to_latent(images), clockwise)


def test_lpips_loss_runs_on_a_local_trunk_file(tmp_path) -> None:
    """A trunk of torchvision's layout, as the configuration names it; a distance that grows with the difference."""
    from losses.config import LPIPSConfig
    from losses.lpips import LPIPSLoss

    torch.save(filled_lpips_trunk(golden("training_lpips")), tmp_path / "vgg16.pth")
    loss = LPIPSLoss(LPIPSConfig(weight=1.0, vgg16_path=str(tmp_path / "vgg16.pth")))
    target = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    near = (0.9 * target).requires_grad_()
    value = loss(LossInputs(target, near))
    (gradient,) = torch.autograd.grad(value, near)
    assert loss(LossInputs(target, target)).item() == 0
    assert 0 < value.item() < loss(LossInputs(target, -target)).item()
    assert gradient.abs().max() > 0
    assert not any(p.requires_grad for p in loss.parameters())
