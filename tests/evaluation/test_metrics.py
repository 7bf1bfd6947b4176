import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import ShapeError
from common.similarity import psnr, ssim
from common.value_range import uint8_to_unit, unit_to_signed, unit_to_uint8
from evaluation.baselines import down8, mean_colour

GOLDEN = Path(__file__).parent.parent / "golden" / "tools_psnr_ssim"
EXPECTED = json.loads(GOLDEN.with_suffix(".json").read_text())
TENSORS = load_file(GOLDEN.with_suffix(".safetensors"))


def unit_pair(case):
    return uint8_to_unit(TENSORS[f"{case}.pred"]), uint8_to_unit(TENSORS[f"{case}.ref"])


def assert_near(values, expected, tolerance):
    assert (values.double() - torch.tensor(expected, dtype=torch.float64)).abs().max() < tolerance


@pytest.mark.parametrize("case", ["square", "rect"])
def test_psnr_equals_the_reference_in_both_ranges(case):
    expected = EXPECTED["cases"][case]["psnr_per_image"]
    pair = unit_pair(case)
    assert_near(psnr(*map(unit_to_signed, pair), data_range=2), expected, 1e-4)
    assert_near(psnr(*pair, data_range=1), expected, 1e-4)


@pytest.mark.parametrize("border", ["full", "valid"])
@pytest.mark.parametrize("case", ["square", "rect"])
def test_ssim_equals_the_reference_in_both_ranges_and_border_rules(case, border):
    expected = EXPECTED["cases"][case]
    pair = unit_pair(case)
    assert_near(ssim(*map(unit_to_signed, pair), 2, border), expected[f"ssim_{border}_per_image"], 1e-5)
    assert_near(ssim(*pair, 1, border), expected[f"ssim01_{border}_per_image"], 1e-5)


@pytest.mark.parametrize("case", ["square", "rect"])
def test_valid_ssim_in_unit_range_equals_scikit_image(case):
    expected = EXPECTED["cases"][case]["ssim_skimage_gaussian_per_image"]
    assert_near(ssim(*(image.double() for image in unit_pair(case)), 1, "valid"), expected, 5e-6)


def test_the_rule_for_writing_png_files_equals_the_reference():
    written = unit_to_uint8(TENSORS["save_rule.float_in"])
    assert torch.equal(written, TENSORS["save_rule.uint8_out"])


def test_an_identical_pair_has_infinite_psnr_and_ssim_one():
    image, _ = unit_pair("square")
    assert psnr(image, image, 1).isinf().all()
    assert (ssim(image, image, 1) - 1).abs().max() < 1e-6


def test_metrics_refuse_what_they_cannot_compare():
    with pytest.raises(ShapeError, match=r"found images \(1, 3, 8, 8\) and \(1, 3, 8, 9\)"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9), 1)
    with pytest.raises(ShapeError, match="below 11 pixels"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), 1, "valid")
    assert ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), 1, "full").item() == 1


def test_the_mean_colour_baseline_is_flat_and_rounds_to_nearest():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 0] = torch.tensor([[10, 11], [11, 11]])
    assert mean_colour(image)[0, :, 0, 0].tolist() == [11, 0, 0]
    assert (mean_colour(image) == mean_colour(image)[..., :1, :1]).all()


def test_the_down8_baseline_keeps_flat_images_and_block_means():
    flat = torch.full((1, 3, 16, 24), 77, dtype=torch.uint8)
    assert torch.equal(down8(flat), flat)
    noise = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pair = (uint8_to_unit(noise), uint8_to_unit(down8(noise)))
    assert psnr(*pair, 1) > psnr(pair[0], uint8_to_unit(mean_colour(noise)), 1)
    with pytest.raises(ShapeError, match="divisible by 8"):
        down8(torch.zeros(1, 3, 12, 16, dtype=torch.uint8))
