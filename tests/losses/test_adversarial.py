"""The two sides of the adversarial losses, feature matching, and the matching-aware loss, by value."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from losses.adversarial import FORMS
from losses.config import PatchGANTermConfig, StyleGANTTermConfig, TermConfig
from losses.feature_matching import FeatureMatchingLoss
from losses.interfaces import DiscriminatorInputs, LossInputs
from losses.matching_aware import MatchingAwareLoss
from losses.patchgan import PatchGANLoss
from losses.stylegan_t import StyleGANTLoss
from networks.interfaces import Verdict

LOGITS = torch.tensor([[-3.0, -0.5, 0.0, 0.25, 2.0]])


def inputs(fake: Verdict, real: Verdict | None = None) -> LossInputs:
    images = torch.zeros(1, 3, 8, 8)
    return LossInputs(images, images, fake=fake, real=real)


def maps(*values: float, features: tuple[float, ...] = ()) -> Verdict:
    """A PatchGAN's verdict: maps of one logit value per scale, behind layers of the given values."""
    sides = (4, 3, 2)
    return Verdict(
        patches=[
            [*(torch.full((2, 5, side, side), f * (i + 1)) for f in features), torch.full((2, 1, side, side), value)]
            for i, (side, value) in enumerate(zip(sides, values, strict=True))
        ]
    )


@pytest.mark.parametrize(
    ("form", "on_real", "on_fake", "generator"),
    [
        ("hinge", [4, 1.5, 1, 0.75, 0], [0, 0.5, 1, 1.25, 3], [3, 0.5, 0, -0.25, -2]),
        ("mse", [16, 2.25, 1, 0.5625, 1], [9, 0.25, 0, 0.0625, 4], [16, 2.25, 1, 0.5625, 1]),
        (
            "bce",
            [math.log1p(math.exp(-x)) for x in LOGITS[0].tolist()],
            [math.log1p(math.exp(x)) for x in LOGITS[0].tolist()],
            [math.log1p(math.exp(-x)) for x in LOGITS[0].tolist()],
        ),
    ],
)
def test_each_form_is_the_mean_of_its_formula(form: str, on_real, on_fake, generator) -> None:
    game = FORMS[form]
    for judge, expected in ((game.on_real, on_real), (game.on_fake, on_fake), (game.generator, generator)):
        assert judge(LOGITS).item() == pytest.approx(sum(expected) / 5, rel=1e-6)


def test_cross_entropy_equals_that_of_pytorch_with_the_targets_one_and_zero() -> None:
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    assert FORMS["bce"].on_real(LOGITS).item() == pytest.approx(entropy(LOGITS, torch.ones(1, 5)).item())
    assert FORMS["bce"].on_fake(LOGITS).item() == pytest.approx(entropy(LOGITS, torch.zeros(1, 5)).item())


@pytest.mark.parametrize(("form", "accuracy"), [("hinge", (2 / 5 + 2 / 5) / 2), ("mse", (4 / 5 + 1 / 5) / 2)])
def test_accuracy_weighs_real_and_fake_alike(form: str, accuracy: float) -> None:
    assert FORMS[form].accuracy(fake=LOGITS, real=LOGITS).item() == pytest.approx(accuracy)
    many = LOGITS.repeat(3, 1)
    assert FORMS[form].accuracy(fake=many, real=LOGITS).item() == pytest.approx(accuracy)


@pytest.mark.parametrize("form", list(FORMS))
def test_the_discriminator_pulls_apart_what_the_tokenizer_pulls_together(form: str) -> None:
    """The discriminator lowers fake logits and raises real ones; the tokenizer raises fake ones."""

    def slope(judge, at: float = 0.2) -> float:
        logits = torch.tensor([at], requires_grad=True)
        (gradient,) = torch.autograd.grad(judge(logits), logits)
        return gradient.item()

    game = FORMS[form]
    assert slope(game.on_fake) > 0
    assert slope(game.on_real) < 0
    assert slope(game.generator) < 0


def test_stylegan_t_reports_both_sides() -> None:
    loss = StyleGANTLoss(StyleGANTTermConfig(weight=1.0))
    real = LOGITS + 1
    both = DiscriminatorInputs(fake=Verdict(LOGITS), real=Verdict(real))
    details = {name: value.item() for name, value in loss.discriminator_details(both).items()}
    assert details == pytest.approx(
        {
            "fake_loss": 1.15,
            "real_loss": 0.7,
            "fake_scores": -0.25,
            "fake_signs": 0.0,
            "real_scores": 0.75,
            "real_signs": 0.6,
            "accuracy": 0.6,
        }
    )
    assert loss.discriminator_loss(both).item() == pytest.approx(1.85)
    assert loss(inputs(Verdict(LOGITS))).item() == pytest.approx(0.25)
    shown = loss.details(inputs(Verdict(LOGITS)))
    assert {name: value.item() for name, value in shown.items()} == {"fake_scores": -0.25, "fake_signs": 0.0}


@pytest.mark.parametrize("form", list(FORMS))
def test_patchgan_weighs_its_scales_alike(form: str) -> None:
    loss, game = PatchGANLoss(PatchGANTermConfig(weight=1.0, loss_type=form)), FORMS[form]
    fake, real = (0.3, -0.6, 0.9), (1.2, 0.6, -0.4)
    both = DiscriminatorInputs(fake=maps(*fake), real=maps(*real))

    def mean(judge, values) -> float:
        return sum(judge(torch.tensor(value)).item() for value in values) / 3

    assert loss(inputs(maps(*fake))).item() == pytest.approx(mean(game.generator, fake))
    expected = mean(game.on_fake, fake) + mean(game.on_real, real)
    assert loss.discriminator_loss(both).item() == pytest.approx(expected)
    details = {name: value.item() for name, value in loss.discriminator_details(both).items()}
    assert details["half/fake_scores"] == pytest.approx(-0.6)
    assert details["half/fake_signs"] == -1
    assert details["quarter/real_signs"] == -1
    assert details["accuracy"] == pytest.approx(4 / 6 if form == "mse" else 3 / 6)
    assert details["fake_loss"] + details["real_loss"] == pytest.approx(expected)


def test_patchgan_signs_are_those_of_each_images_mean_logit() -> None:
    loss = PatchGANLoss(PatchGANTermConfig(weight=1.0))
    logits = torch.tensor([[3.0, -1.0, -1.0, -0.5], [-3.0, 1.0, 1.0, 0.5]]).view(2, 1, 2, 2)  # means 1/8 and -1/8
    details = loss.details(inputs(Verdict(patches=[[logits], [logits[:1]], [logits[1:]]])))
    signs = [details[f"{scale}/fake_signs"].item() for scale in ("full", "half", "quarter")]
    assert signs == [0, 1, -1]


def test_feature_matching_sums_layers_averages_scales_and_leaves_out_logits() -> None:
    fake, real = maps(9, 9, 9, features=(1, 2, 3, 4)), maps(0, 0, 0, features=(1, 1, 1, 1))
    value = FeatureMatchingLoss(TermConfig(weight=1.0))(inputs(fake, real))
    assert value.item() == pytest.approx((1 + 2 + 3) / 3 * (0 + 1 + 2 + 3))


def test_feature_matching_sends_no_gradient_into_the_real_features() -> None:
    def verdict() -> Verdict:
        return Verdict(patches=[[torch.rand(1, 2, 3, 3, requires_grad=True), torch.zeros(1, 1, 3, 3)]])

    fake, real = verdict(), verdict()
    FeatureMatchingLoss(TermConfig(weight=1.0))(inputs(fake, real)).backward()
    assert fake.patches[0][0].grad.abs().max() > 0
    assert real.patches[0][0].grad is None


def test_matching_aware_loss_calls_every_image_with_a_wrong_label_fake() -> None:
    def gradient(logits: Tensor) -> Tensor:
        return logits.grad

    fake, real = (LOGITS.clone().requires_grad_() for _ in range(2))
    nothing = Verdict()
    both = DiscriminatorInputs(nothing, nothing, fake_shuffled=Verdict(fake), real_shuffled=Verdict(real))
    loss = MatchingAwareLoss(TermConfig(weight=1.0)).discriminator_loss(both)
    loss.backward()
    assert loss.item() == pytest.approx(2 * FORMS["bce"].on_fake(LOGITS).item())
    assert (gradient(fake) > 0).all() and (gradient(real) > 0).all()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_losses_on_logits_of_half_precision_are_computed_in_fp32(precision: torch.dtype) -> None:
    logits = torch.linspace(-1, 1, 980)[None].to(precision)
    loss = StyleGANTLoss(StyleGANTTermConfig(weight=1.0))
    assert loss(inputs(Verdict(logits))).dtype == torch.float32
    assert loss.discriminator_loss(DiscriminatorInputs(Verdict(logits), Verdict(logits))).item() == pytest.approx(
        2.0, abs=1e-3
    )
