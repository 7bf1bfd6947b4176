"""The section `losses:` of VFMTok, and its rule on discriminators."""

from __future__ import annotations

import pytest

from common.config import StrictModel, validate
from configs.losses import ONE_DISCRIMINATOR, enabled_losses, loss_relations, losses_section
from networks.config import DiscriminatorConfig

Section = losses_section("vfmtok")
TERM = {"l2_pixel": {"weight": 2.0}, "vfmtok_gan": {"weight": 0.5}}


class Sections(StrictModel):
    """What the rules read."""

    losses: Section
    discriminator: DiscriminatorConfig = DiscriminatorConfig()


def problems(losses: dict, discriminator: dict | None = None) -> list[str]:
    values = {"losses": losses, "discriminator": discriminator or {}}
    _, found = validate(Sections, values, (*loss_relations("vfmtok"), ONE_DISCRIMINATOR))
    return [str(problem) for problem in found]


def test_a_term_is_named_by_the_systems_that_have_it() -> None:
    assert {"semantic", "vfmtok_gan", "vq", "perceptual"} <= set(Section.model_fields)
    assert problems({"l2_pixel": {"weight": 1.0}, "vf": {"weight": 1.0}}) == [
        "losses.vf: belongs to the system vfm_vae, not to vfmtok; remove the term."
    ]
    section = Section(l2_pixel={"weight": 2.0}, ssim={"weight": 0.0}, semantic={"weight": 1.0})
    assert list(enabled_losses(section)) == ["l2_pixel", "semantic"]


@pytest.mark.parametrize("kind", ["use_stylegan_t", "use_patchgan", "use_stylegan2"])
def test_the_adversarial_term_takes_any_one_discriminator(kind: str) -> None:
    switch = f"{kind}_discriminator"
    assert problems(TERM, {switch: True}) == []
    without_term = problems({"l2_pixel": {"weight": 2.0}}, {switch: True})
    assert without_term == [
        f"losses.vfmtok_gan: has no weight above 0, but discriminator.{switch} is true, which only this term uses; "
        "set it false, or name the term."
    ]


def test_the_adversarial_term_takes_neither_none_nor_two() -> None:
    both = {"use_patchgan_discriminator": True, "use_stylegan2_discriminator": True}
    expected = "set exactly one of discriminator.use_stylegan_t_discriminator, use_patchgan_discriminator,"
    for found, start in (
        (problems(TERM), "losses.vfmtok_gan: found 0.5 with no discriminator; "),
        (
            problems(TERM, both),
            "losses.vfmtok_gan: found 0.5 with discriminator.use_patchgan_discriminator and discriminator."
            "use_stylegan2_discriminator; ",
        ),
    ):
        assert len(found) == 1
        assert found[0].startswith(start + expected)


def test_windows_that_never_open_and_an_empty_objective_are_refused() -> None:
    assert problems({"l2_pixel": {"weight": 1.0, "start_kimg": 2, "end_kimg": 1}}) == [
        "losses.l2_pixel: end_kimg 1 is not after start_kimg 2; the term would never count."
    ]
    assert problems({"semantic": {"weight": 0.0}})[0].startswith("losses: no loss has a weight above 0; name at least")
