"""How whole training steps of the reference are compared: discriminators, tokenizer, Adam and EMA together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor

from common.config import Source
from configs.reference import translate
from configs.schema import check
from configs.vfm_vae import VFMVAEExperiment
from data.skips import SkipCounter
from losses.lpips import LPIPS
from networks.checkpoint import to_own_name
from networks.latent import DiagonalGaussian
from tests.golden.cases import Case, fill, filled_state, load_filled
from tests.golden.check_discriminators import filled_discriminators
from tests.golden.check_encoders import build_encoder
from trainer.systems.vfm_vae import VFMVAESystem
from trainer.trainer import Trainer

LPIPS_LAYERS = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
LPIPS_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)

# The reference's names of what is logged -> this project's; {n} is an index into the images, largest first.
NAMES = {
    "Loss/D/stylegan_t/gen_loss": "discriminator/stylegan_t/fake_loss",
    "Loss/D/stylegan_t/real_loss": "discriminator/stylegan_t/real_loss",
    "Loss/D/stylegan_t/loss": "discriminator/stylegan_t",
    "Loss/D/stylegan_t/fake_scores": "discriminator/stylegan_t/fake_scores",
    "Loss/D/stylegan_t/real_scores": "discriminator/stylegan_t/real_scores",
    "Loss/D/patchgan/gen_loss": "discriminator/patchgan/fake_loss",
    "Loss/D/patchgan/real_loss": "discriminator/patchgan/real_loss",
    "Loss/D/patchgan/loss": "discriminator/patchgan",
    "Loss/G/l1_pixel_loss": "loss/l1_pixel",
    "Loss/G/l2_pixel_loss": "loss/l2_pixel",
    "Loss/G/perceptual_loss": "loss/perceptual",
    "Loss/G/ssim_loss": "loss/ssim",
    "Loss/G/multiscale_pixel_loss": "loss/multiscale_pixel",
    "Loss/G/stylegan_t/loss": "loss/stylegan_t",
    "Loss/G/stylegan_t/fake_scores": "loss/stylegan_t/fake_scores",
    "Loss/G/patchgan/loss": "loss/patchgan",
    "Loss/G/patchgan/feature_matching_loss": "loss/feature_matching",
    "Loss/G/vf_loss": "loss/vf",
    "Loss/G/kl_loss": "loss/kl",
}
PHASES = {"D": "discriminator", "G": "generator"}


def check_trajectory(case: Case) -> None:
    """Every logged value, gradient norm and count of trained parameters of each step; the moments at the end."""
    facts, noises = case.facts, _noises(case)
    with ExitStack() as replaced:
        replaced.enter_context(patch("trainer.systems.vfm_vae.uint8_to_unit", lambda images: images))
        replaced.enter_context(
            patch.object(DiagonalGaussian, "sample", lambda self, generator=None, noise=None: _sample(self, noises))
        )
        trainer = _trainer(case)
        for step, expected in enumerate(facts["steps"]):
            assert trainer.nimg == expected["nimg_before"]
            batch = SimpleNamespace(images=case.tensors[f"step{step}.images"], labels=None, texts=None)
            found = _train_step(trainer, batch)
            for letter in PHASES:
                _check_phase(case, step, letter, expected[letter], found)
    _check_end(case, trainer)


def _train_step(trainer: Trainer, batch: SimpleNamespace) -> dict[str, float]:
    """One step; everything that it reports, and how many parameters each phase trained."""
    found: dict[str, float] = {}
    system, backward, after_step = trainer.system, trainer.system.backward, trainer.system.after_step

    def counted(phase, batch, at):
        report = backward(phase, batch, at)
        found[f"trained/{phase.name}"] = sum(p.numel() for p in phase.parameters.values() if p.grad is not None)
        return report

    with patch.object(system, "backward", counted), patch.object(system, "after_step", found.update):
        trainer.train_step(iter([batch]))
    after_step(found)
    return found


def _check_phase(case: Case, step: int, letter: str, expected: dict, found: dict[str, float]) -> None:
    tolerance, phase = case.facts["tolerance"], PHASES[letter]
    for name, reference in expected.items():
        title = f"step {step}, {name}"
        if name == f"Loss/{letter}/skipped":
            assert reference == 0.0 and f"gradient_norm/{phase}" in found, title
        elif name == "num_parameters_with_grad":
            assert found[f"trained/{phase}"] == reference, title
        elif name == "total_grad_norm":
            limit = tolerance["relative_gradient_norms_by_step"][step]
            _check_relative(case, title, found[f"gradient_norm/{phase}"], reference, limit)
        elif not name.endswith("_signs"):
            _check_relative(case, title, found[_own(case, name)], reference, tolerance["relative_losses_by_step"][step])


def _own(case: Case, name: str) -> str:
    if match := re.fullmatch(r"Loss/G/multiscale_pixel_loss_block(\d+)", name):
        return f"loss/multiscale_pixel/resolution_{case.facts['multiscale_sizes_largest_first'][int(match[1])]}"
    return NAMES[name]


def _check_relative(case: Case, name: str, found: float, reference: float, tolerance: float) -> None:
    assert abs(found - reference) <= tolerance * abs(reference), f"{name}: found {found!r}, expected {reference!r}"
    case.compared += 1


@torch.no_grad()
def _check_end(case: Case, trainer: Trainer) -> None:
    """The EMA's moments; everything else that is stored about the end depends too much on rounding."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1234))
    model = trainer.system.average
    moments = model.compression(model.encoder(images))
    difference = (moments - case.tensors["final.G_ema.moments"]).abs().max().item()
    assert difference <= case.facts["tolerance"]["final_G_ema_moments_max_abs"], difference
    case.compared += 1


# --- the run -----------------------------------------------------------------------------------------------------


def _trainer(case: Case) -> Trainer:
    facts, device = case.facts, torch.device("cpu")
    config = _config(facts)
    encoder = build_encoder(facts["vfm"], config.encoder.patch_from_layers, config.encoder.scale_factor)
    discriminators = filled_discriminators(config.discriminator, config.encoder.interpolation())
    with (
        patch("trainer.systems.adversarial.build_discriminators", lambda *arguments: discriminators),
        patch("losses.lpips.load_lpips", lambda path: _filled_lpips()),
    ):
        system = VFMVAESystem(config, device, encoder)
    state = filled_state(facts["state_dict_generator"])
    own = {to_own_name(key, family=facts["vfm"]["family"]): value for key, value in state.items()}
    for model in (system.tokenizer, system.average):
        load_filled(model, own)
    return Trainer(config, system, SimpleNamespace(skips=SkipCounter(0), steps=None), device)


def _config(facts: dict) -> VFMVAEExperiment:
    """The case's keyword arguments as a YAML of the reference, translated."""
    adam = facts["optimizers"]
    optimizer = {"class_name": "torch.optim.Adam", **{name: adam[name] for name in ("lr", "betas", "eps")}}
    discriminator = {k: v for k, v in facts["discriminator_kwargs"].items() if k not in ("mode", "c_dim", "vfm_name")}
    generator = dict(facts["generator_kwargs"])
    data = {"path": ".", "resolution": generator["img_resolution"], "conditional": False, "label_type": "cls2text"}
    values = {
        "run_dir": ".",
        "training_set_kwargs": {"class_name": "training.data_wds.WdsWrapper", **data},
        "G_kwargs": {"class_name": "networks.generator.Generator", **generator, "train_mode": facts["train_mode"]},
        "D_kwargs": {"class_name": "networks.discriminator.ProjectedDiscriminator", **discriminator},
        "loss_kwargs": {"class_name": "training.loss.TotalLoss", **facts["loss_kwargs"]},
        "G_opt_kwargs": optimizer,
        "D_opt_kwargs": optimizer,
        "batch_size": facts["batch_size"],
        "accumulate_gradients": facts["accumulate_gradients"],
        **facts["ema"],
    }
    translation = translate(Source("trajectory.yaml", values))
    assert not translation.problems, translation.problems
    own = translation.source.values
    own["training"] |= {"precision": "fp32", "init_kimg": facts["nimg_at_start"] / 1000}
    own["data"]["label_type"] = "none"
    own["equivariance"]["use_equivariance_regularization"] = facts["equivariance"]
    return check(translation.source).config


def _filled_lpips() -> LPIPS:
    """LPIPS on a trunk by the fill rule."""
    trunk, n_in = {}, 3
    numbers = [(piece, number) for piece, layers in LPIPS_LAYERS.items() for number in layers]
    for (piece, number), n_out in zip(numbers, LPIPS_WIDTHS, strict=True):
        for part, shape in (("weight", [n_out, n_in, 3, 3]), ("bias", [n_out])):
            trunk[f"features.{number}.{part}"] = fill(f"net.slice{piece}.{number}.{part}", shape)
        n_in = n_out
    return LPIPS(trunk)


def _noises(case: Case) -> Iterator[Tensor]:
    for step in range(len(case.facts["steps"])):
        for letter in PHASES:
            yield case.tensors[f"step{step}.{letter}.eps"]


def _sample(posterior: DiagonalGaussian, noises: Iterator[Tensor]) -> Tensor:
    return posterior.mean + posterior.std * next(noises)
