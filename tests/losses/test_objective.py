"""Which terms count when, what they need, and how the sides are kept apart."""

from __future__ import annotations

import pytest
import torch

from losses.config import MultiscaleConfig, PatchGANTermConfig, StyleGANTTermConfig, TermConfig
from losses.interfaces import DiscriminatorInputs, LossInputs
from losses.objective import Objective, Value, details, total
from losses.schedule import Moment, blur_sigma
from losses.warmup import HELD_BACK
from networks.interfaces import Verdict

TERMS = {
    "l1_pixel": TermConfig(weight=1.0),
    "ssim": TermConfig(weight=0.5, start_kimg=2),
    "multiscale_pixel": MultiscaleConfig(weights={8: 0.1}, end_kimg=1),
    "kl": TermConfig(weight=1e-6),
    "stylegan_t": StyleGANTTermConfig(weight=2.0),
    "patchgan": PatchGANTermConfig(weight=3.0, start_kimg=1),
    "feature_matching": TermConfig(weight=10.0, start_kimg=1),
    "matching_aware": TermConfig(weight=0.5),
}


@pytest.fixture
def verdict() -> Verdict:
    generator = torch.Generator().manual_seed(0)
    maps = [[torch.randn(2, c, 4, 4, generator=generator) for c in (6, 1)] for _ in range(3)]
    return Verdict(torch.randn(2, 20, generator=generator), maps)


@pytest.fixture
def inputs(verdict: Verdict) -> LossInputs:
    generator = torch.Generator().manual_seed(1)
    target, reconstruction = (torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    small = {8: torch.zeros(2, 3, 8, 8)}
    return LossInputs(target, reconstruction, small, small, fake=verdict, real=verdict)


def counting(objective: Objective, at: Moment) -> set[str]:
    return {name for name in objective.terms if objective.counts(name, at)}


def test_terms_count_within_their_windows_and_in_their_groups(inputs: LossInputs, verdict: Verdict) -> None:
    objective = Objective(TERMS)
    assert set(objective.reconstruction_terms(inputs, Moment(0))) == {"l1_pixel", "multiscale_pixel"}
    assert set(objective.reconstruction_terms(inputs, Moment(2000))) == {"l1_pixel", "ssim"}
    assert set(objective.adversarial_terms(inputs, Moment(0))) == {"stylegan_t"}
    assert set(objective.adversarial_terms(inputs, Moment(1000))) == {"stylegan_t", "patchgan", "feature_matching"}
    both = DiscriminatorInputs(verdict, verdict, verdict, verdict)
    assert set(objective.discriminator_terms(both, Moment(0))) == {"stylegan_t", "matching_aware"}
    assert set(objective.discriminator_terms(both, Moment(1000))) == {"stylegan_t", "matching_aware", "patchgan"}
    assert objective.names("reconstruction") == ["l1_pixel", "ssim", "multiscale_pixel"]
    assert objective.names("latent") == ["kl"]


@pytest.mark.parametrize("held", ["stylegan_t", "patchgan"])
def test_a_waiting_discriminator_takes_its_terms_of_both_sides_with_it(held: str) -> None:
    objective, open_windows = Objective(TERMS), 2000
    without = counting(objective, Moment(open_windows)) - counting(objective, Moment(open_windows, HELD_BACK[held]))
    assert without == HELD_BACK[held]


def test_patchgan_replaces_reconstruction_and_latent_terms_only_if_asked_and_only_while_it_counts() -> None:
    asked = TERMS["patchgan"].model_copy(update={"disable_reconstruction_when_patchgan": True})
    objective = Objective({**TERMS, "patchgan": asked})
    before = {"l1_pixel", "multiscale_pixel", "kl", "stylegan_t", "matching_aware"}
    assert counting(objective, Moment(999)) == before
    games = {"stylegan_t", "matching_aware", "patchgan", "feature_matching"}
    assert counting(objective, Moment(2000)) == games
    held_back = Moment(2000, HELD_BACK["patchgan"])
    assert counting(objective, held_back) == {"l1_pixel", "ssim", "kl", "stylegan_t", "matching_aware"}
    assert counting(Objective(TERMS), Moment(2000)) == games | {"l1_pixel", "ssim", "kl"}


@pytest.mark.parametrize(
    ("field", "at", "needed"),
    [
        ("pyramid", Moment(999), True),
        ("pyramid", Moment(1000), False),
        ("real", Moment(999), False),
        ("real", Moment(1000), True),
        ("real", Moment(1000, HELD_BACK["patchgan"]), False),
        ("fake", Moment(0), True),
        ("fake", Moment(0, HELD_BACK["stylegan_t"]), False),
        ("aligned_to", Moment(0), False),
        ("texts", Moment(0), False),
    ],
)
def test_an_objective_needs_what_its_counting_terms_read(field: str, at: Moment, needed: bool) -> None:
    assert Objective(TERMS).needs(field, at) is needed


def test_discriminators_need_shuffled_labels_only_for_the_matching_aware_loss() -> None:
    objective = Objective(TERMS)
    assert objective.discriminators_need("fake_shuffled", Moment(0))
    assert not objective.discriminators_need("fake_shuffled", Moment(0, HELD_BACK["stylegan_t"]))
    assert not Objective({"stylegan_t": TERMS["stylegan_t"]}).discriminators_need("fake_shuffled", Moment(0))


class Recorded:
    """A record that notes which of its fields are read."""

    def __init__(self, record) -> None:
        self.record, self.read = record, set()

    def __getattr__(self, name: str):
        self.read.add(name)
        return getattr(self.record, name)


def test_every_term_reads_what_it_says_it_needs_and_nothing_else(inputs: LossInputs, verdict: Verdict) -> None:
    objective = Objective({name: term for name, term in TERMS.items() if name != "kl"})
    for name, loss in objective.losses.items():
        if name in {name for group in ("reconstruction", "adversarial") for name in objective.names(group)}:
            seen = Recorded(inputs)
            loss(seen)
            assert seen.read == loss.needs, name
            loss.details(seen)
            assert seen.read == loss.needs, name
        if hasattr(loss, "discriminator_loss"):
            seen = Recorded(DiscriminatorInputs(verdict, verdict, verdict, verdict))
            loss.discriminator_loss(seen)
            loss.discriminator_details(seen)
            assert seen.read == loss.discriminator_needs, name


def test_details_carry_the_terms_name_and_no_gradient(inputs: LossInputs) -> None:
    reconstruction = inputs.reconstruction.requires_grad_()
    verdict = Verdict(reconstruction.flatten(1), inputs.fake.patches)
    fooled = LossInputs(inputs.target, reconstruction, inputs.pyramid, inputs.pyramid_targets, fake=verdict)
    objective = Objective(TERMS)
    values = objective.adversarial_terms(fooled, Moment(0)) | objective.reconstruction_terms(fooled, Moment(0))
    shown = details(values)
    assert set(shown) == {
        "stylegan_t/fake_scores",
        "stylegan_t/fake_signs",
        "multiscale_pixel/resolution_8",
    }
    assert not any(value.requires_grad for value in shown.values())
    assert values["stylegan_t"].loss.requires_grad
    assert shown["stylegan_t/fake_scores"].item() == pytest.approx(-values["stylegan_t"].loss.item())


def test_the_total_is_the_weighted_sum() -> None:
    values = {"a": Value(torch.tensor(2.0), 3.0), "b": Value(torch.tensor(5.0), torch.tensor(0.1))}
    assert total(values, touching=[torch.ones(2)]).item() == pytest.approx(6.5)


def test_what_other_networks_say_is_no_part_of_the_reconstruction_loss() -> None:
    from losses.clip import CLIPLoss
    from losses.kl import KLLoss
    from losses.ssim import SSIMLoss
    from losses.stylegan_t import StyleGANTLoss

    groups = [loss.group for loss in (SSIMLoss, StyleGANTLoss, CLIPLoss, KLLoss)]
    assert groups == ["reconstruction", "adversarial", "adversarial", "latent"]


@pytest.mark.parametrize(("nimg", "sigma"), [(0, 2.0), (100_000, 1.0), (150_000, 0.5), (200_000, 0.0), (900_000, 0.0)])
def test_blur_falls_linearly_and_stays_at_zero(nimg: int, sigma: float) -> None:
    assert blur_sigma(nimg, init_sigma=2.0, fade_kimg=200) == pytest.approx(sigma)
    assert blur_sigma(nimg, init_sigma=2.0, fade_kimg=0) == 0
