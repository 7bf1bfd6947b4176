"""Parity with the reference: every golden case is a test of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.cases import HERE, Case, collect
from tests.golden.check_alignment import check_cknna, check_se_cknna, check_transforms
from tests.golden.check_ar import check_gpt, check_sampling
from tests.golden.check_data import check_training_data
from tests.golden.check_diffusion import (
    check_lightningdit_loss,
    check_lightningdit_ode,
    check_reg_loss,
    check_reg_ode,
    check_reg_sde,
    check_transport,
)
from tests.golden.check_diffusion_networks import (
    check_lightningdit_cfg,
    check_lightningdit_forward,
    check_reg_forward,
)
from tests.golden.check_discriminators import check_diffaug, check_head, check_patchgan, check_projected
from tests.golden.check_encoders import check_encoder
from tests.golden.check_generation import check_generation_metrics
from tests.golden.check_io import check_io
from tests.golden.check_latents import check_latent_dataset, check_latent_stats
from tests.golden.check_losses import check_pixel_losses, check_warmup
from tests.golden.check_networks import check_tiny, check_unit
from tests.golden.check_tools import check_psnr_ssim
from tests.golden.check_total_loss import check_total_loss
from tests.golden.check_training import (
    check_ema,
    check_equivariance,
    check_latent_losses,
    check_lpips,
    check_safe_loss,
)
from tests.golden.check_trajectory import check_trajectory
from tests.golden.check_vfmtok import (
    check_decode_transformer,
    check_deformable_attention,
    check_pixel_decoder,
    check_preprocess,
    check_quantizer,
    check_region_layers,
    check_tokenizer,
)
from tests.golden.check_vfmtok_discriminator import check_vfmtok_discriminator
from tests.golden.check_vfmtok_losses import check_vfmtok_losses

CHECKS = {
    "networks_tiny": check_tiny,
    "networks_units": check_unit,
    "networks_vfm": check_encoder,
    "training_data": check_training_data,
    "training_diffaug": check_diffaug,
    "training_disc_head": check_head,
    "training_ema": check_ema,
    "training_equivariance": check_equivariance,
    "training_latent_losses": check_latent_losses,
    "training_lpips": check_lpips,
    "training_patchgan": check_patchgan,
    "training_pixel_losses": check_pixel_losses,
    "training_safe_loss": check_safe_loss,
    "training_trajectory": check_trajectory,
    "training_stylegan_t_disc": check_projected,
    "training_total_loss": check_total_loss,
    "training_warmup": check_warmup,
    "tools_cknna": check_cknna,
    "tools_generation_metrics": check_generation_metrics,
    "tools_io": check_io,
    "tools_latent_stats": check_latent_stats,
    "tools_psnr_ssim": check_psnr_ssim,
    "tools_se_cknna": check_se_cknna,
    "tools_transforms": check_transforms,
    "diffusion_latent_dataset": check_latent_dataset,
    "diffusion_lightningdit_cfg": check_lightningdit_cfg,
    "diffusion_lightningdit_forward": check_lightningdit_forward,
    "diffusion_lightningdit_loss": check_lightningdit_loss,
    "diffusion_lightningdit_ode": check_lightningdit_ode,
    "diffusion_reg_forward": check_reg_forward,
    "diffusion_reg_loss": check_reg_loss,
    "diffusion_reg_ode": check_reg_ode,
    "diffusion_reg_sde": check_reg_sde,
    "diffusion_transport": check_transport,
    "vfmtok_decode_transformer": check_decode_transformer,
    "vfmtok_deform_encoder": check_region_layers,
    "vfmtok_dino_disc": check_vfmtok_discriminator,
    "vfmtok_gpt": check_gpt,
    "vfmtok_losses": check_vfmtok_losses,
    "vfmtok_msda": check_deformable_attention,
    "vfmtok_pixel_decoder": check_pixel_decoder,
    "vfmtok_preprocess": check_preprocess,
    "vfmtok_quantizer_l2": check_quantizer,
    "vfmtok_quantizer_plain": check_quantizer,
    "vfmtok_sampling": check_sampling,
    "vfmtok_tokenizer": check_tokenizer,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden-dir")
    cases = collect(Path(folder) if folder else HERE)
    if not cases:
        raise pytest.UsageError(f"--golden-dir {folder}: no golden cases (*.json) there")
    metafunc.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


def test_parity_with_the_reference(case: Case) -> None:
    assert case.kind in CHECKS, f"{case.path.name}: no test for cases of the kind {case.kind!r}"
    CHECKS[case.kind](case)
    assert case.compared > 0, f"{case.name}: nothing was compared"
