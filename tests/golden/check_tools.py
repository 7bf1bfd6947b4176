"""How the cases of the tools are compared."""

from __future__ import annotations

from common.similarity import psnr, ssim
from common.value_range import uint8_to_unit, unit_to_signed, unit_to_uint8
from tests.golden.cases import Case


def check_psnr_ssim(case: Case) -> None:
    """PSNR and SSIM of every variant, and the rule by which images are written."""
    limits = case.facts["tolerance"]
    for name, expected in case.facts["cases"].items():
        reference, prediction = (uint8_to_unit(case.tensors[f"{name}.{kind}"]) for kind in ("ref", "pred"))
        a, b = unit_to_signed(prediction), unit_to_signed(reference)
        found = {
            "psnr_per_image": psnr(a, b, 2.0),
            "ssim_full_per_image": ssim(a, b, 2.0),
            "ssim_valid_per_image": ssim(a, b, 2.0, border="valid"),
            "ssim01_full_per_image": ssim(prediction, reference, 1.0),
            "ssim01_valid_per_image": ssim(prediction, reference, 1.0, border="valid"),
        }
        for metric, values in found.items():
            limit = limits["psnr" if metric.startswith("psnr") else "ssim"]
            for value, stored in zip(values.tolist(), expected[metric], strict=True):
                assert abs(value - stored) <= limit, f"{name}: {metric}: {value} instead of {stored}"
                case.compared += 1
    written = unit_to_uint8(case.tensors["save_rule.float_in"])
    assert written.tolist() == case.tensors["save_rule.uint8_out"].tolist()
