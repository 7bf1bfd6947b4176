"""VFMTok's terms by value: semantic reconstruction, and the adversarial game with any one discriminator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.errors import ShapeError
from losses.config import TermConfig, VFMTokGANTermConfig
from losses.interfaces import DiscriminatorInputs, LossInputs
from losses.objective import Objective
from losses.schedule import Moment
from losses.semantic import SemanticLoss, semantic_loss
from losses.vfmtok_gan import VFMTokGANLoss
from networks.interfaces import Verdict

FAKE, REAL = torch.tensor([[-3.0, 0.5, 2.0]]), torch.tensor([[1.5, -0.25, 0.0]])


def entropy(logits: Tensor, sign: int) -> float:
    """Mean softplus(sign * l)."""
    return sum(math.log1p(math.exp(sign * x)) for x in logits.flatten().tolist()) / logits.numel()


def inputs(fake: Verdict) -> LossInputs:
    images = torch.zeros(1, 3, 8, 8)
    return LossInputs(images, images, fake=fake)


# --- semantic reconstruction -----------------------------------------------------------------------------------------


def test_semantic_loss_is_the_mean_distance_of_directions() -> None:
    predicted = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [1.0, 1.0]]])
    features = torch.tensor([[[5.0, 0.0], [1.0, 0.0]], [[-3.0, -4.0], [0.0, 0.0]]])
    assert semantic_loss(predicted, features).item() == pytest.approx((0 + 1 + 2 + 1) / 4)


def test_semantic_loss_trains_the_prediction_alone_and_is_finite_at_zero() -> None:
    predicted = torch.randn(2, 3, 4)
    predicted[0, 0] = 0
    predicted.requires_grad_()
    target = torch.randn(2, 3, 4).requires_grad_()
    images = torch.zeros(2, 3, 8, 8)
    loss = SemanticLoss(TermConfig(weight=1.0))(LossInputs(images, images, semantic=predicted, semantic_target=target))
    loss.backward()
    assert target.grad is None
    assert predicted.grad.isfinite().all()
    assert predicted.grad[1].abs().sum() > 0


def test_features_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"predicted features \[1, 4, 8\] and features \[1, 9, 8\] must agree"):
        semantic_loss(torch.zeros(1, 4, 8), torch.zeros(1, 9, 8))


# --- the adversarial game --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("hinge", ((0 + 1.5 + 3) / 3 + (0 + 1.25 + 1) / 3) / 2),
        ("vanilla", (entropy(FAKE, 1) + entropy(REAL, -1)) / 2),
        ("non-saturating", (entropy(FAKE, 1) + entropy(REAL, -1)) / 2),
    ],
)
def test_the_discriminators_loss_is_half_the_sum_of_both_kinds(form: str, expected: float) -> None:
    loss = VFMTokGANLoss(VFMTokGANTermConfig(weight=1.0, disc_loss=form))
    both = DiscriminatorInputs(fake=Verdict(FAKE), real=Verdict(REAL))
    assert loss.discriminator_loss(both).item() == pytest.approx(expected)
    details = loss.discriminator_details(both)
    assert (details["fake_loss"] + details["real_loss"]).item() == pytest.approx(expected)
    assert details["accuracy"].item() == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert details["real_scores"].item() == pytest.approx(1.25 / 3)


@pytest.mark.parametrize(
    ("form", "expected"),
    [("softplus_g_loss", entropy(FAKE, -1)), ("hinge", 0.5 / 3), ("non-saturating", entropy(FAKE, -1))],
)
def test_the_tokenizers_loss_has_a_form_of_its_own(form: str, expected: float) -> None:
    loss = VFMTokGANLoss(VFMTokGANTermConfig(weight=1.0, gen_loss=form))
    assert loss(inputs(Verdict(FAKE))).item() == pytest.approx(expected)
    assert loss.details(inputs(Verdict(FAKE)))["fake_scores"].item() == pytest.approx(-0.5 / 3)


def test_the_non_saturating_discriminator_learns_from_reconstructions() -> None:
    loss = VFMTokGANLoss(VFMTokGANTermConfig(weight=1.0, disc_loss="non-saturating"))
    fake, real = FAKE.clone().requires_grad_(), REAL.clone().requires_grad_()
    loss.discriminator_loss(DiscriminatorInputs(Verdict(fake), Verdict(real))).backward()
    assert torch.allclose(fake.grad, torch.sigmoid(FAKE) / 6)
    assert torch.allclose(real.grad, -torch.sigmoid(-REAL) / 6)


def test_any_one_discriminator_is_heard_and_scales_weigh_the_same() -> None:
    loss = VFMTokGANLoss(VFMTokGANTermConfig(weight=1.0, gen_loss="hinge"))
    maps = [[torch.full((1, 5, 2, 2), 9.0), torch.full((1, 1, side, side), float(side))] for side in (4, 2)]
    assert loss(inputs(Verdict(patches=maps))).item() == pytest.approx(-3.0)
    assert loss(inputs(Verdict(whole=torch.tensor([[2.0], [4.0]])))).item() == pytest.approx(-3.0)


def test_no_side_counts_before_its_start() -> None:
    term = VFMTokGANTermConfig(weight=0.5, start_kimg=2)
    objective = Objective({"vfmtok_gan": term, "l2_pixel": TermConfig(weight=1.0)})
    assert objective.discriminator_names() == ["vfmtok_gan"]
    for nimg, counts in ((1999, False), (2000, True)):
        assert objective.needs("fake", Moment(nimg)) is counts
        assert objective.discriminators_need("real", Moment(nimg)) is counts
    both = DiscriminatorInputs(fake=Verdict(FAKE), real=Verdict(REAL))
    assert objective.discriminator_terms(both, Moment(2000))["vfmtok_gan"].weight == 0.5
