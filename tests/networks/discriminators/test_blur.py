"""The blur of the discriminators' inputs."""

from __future__ import annotations

import torch

from networks.discriminators.blur import blur_images


def test_a_point_spreads_to_half_its_weight_at_a_distance_of_sigma() -> None:
    image = torch.zeros(1, 3, 31, 31)
    image[0, 1, 15, 15] = 1
    blurred = blur_images(image, 2.0)
    assert torch.allclose(blurred.sum((2, 3)), torch.tensor([[0.0, 1.0, 0.0]]))
    assert torch.allclose(blurred[0, 1, 15, 17], blurred[0, 1, 15, 15] / 2)
    assert torch.equal(blurred[0, 1], blurred[0, 1].T)
    assert blurred[0, 1, 15, 22] == 0.0  # the kernel reaches 3 sigma = 6 pixels


def test_a_blur_of_less_than_a_third_of_a_pixel_changes_nothing() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert blur_images(images, 0.33) is images
    assert not torch.equal(blur_images(images, 0.34), images)
