"""REG's objective."""

from __future__ import annotations

import pytest
import torch

from common.errors import ShapeError
from losses.config import REGLossConfig
from losses.reg import REG_PATHS, alignment_loss, reg_loss
from losses.times import draw_reg_times


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_each_class_token_meets_its_own_time_on_the_cosine_path():
    data, noise, t = draws(3, 5), draws(3, 5, seed=1), torch.tensor([0.1, 0.5, 0.8])
    together = REG_PATHS["cosine"].point(data, noise, t)
    alone = [REG_PATHS["cosine"].point(data[i : i + 1], noise[i : i + 1], t[i : i + 1]) for i in range(3)]
    assert together.velocity.shape == (3, 5)
    torch.testing.assert_close(together.velocity, torch.cat([point.velocity for point in alone]))


def test_total_weighs_the_terms():
    point = REG_PATHS["linear"].point(draws(2, 3, 4, 4), draws(2, 3, 4, 4, seed=1), torch.tensor([0.2, 0.6]))
    class_point = REG_PATHS["linear"].point(draws(2, 5), draws(2, 5, seed=1), torch.tensor([0.2, 0.6]))
    targets = [draws(2, 17, 5)]
    loss = reg_loss(point.velocity + 1, class_point.velocity - 2, targets, point, class_point, targets)
    torch.testing.assert_close(loss.denoise, torch.ones(2))
    torch.testing.assert_close(loss.cls, torch.full((2,), 4.0))
    torch.testing.assert_close(loss.proj, torch.tensor(-1.0))
    torch.testing.assert_close(loss.total(REGLossConfig()), torch.tensor(1 - 0.5 + 0.03 * 4))
    heavier = REGLossConfig(proj_coeff=2.0, cls_weight=1.0)
    torch.testing.assert_close(loss.total(heavier), torch.tensor(1 - 2.0 + 4))


def test_alignment_averages_over_target_encoders_and_leaves_them_alone():
    first, second = draws(2, 17, 5), draws(2, 17, 8, seed=1)
    projected = [first.clone().requires_grad_(), (-second).requires_grad_()]
    targets = [(3 * first).requires_grad_(), second.requires_grad_()]
    loss = alignment_loss(projected, targets)
    torch.testing.assert_close(loss.detach(), torch.tensor(0.0), atol=1e-6, rtol=0)
    loss.backward()
    assert all(tokens.grad is not None for tokens in projected)
    assert all(tokens.grad is None for tokens in targets)


@pytest.mark.parametrize("targets", [[draws(2, 16, 5)], [draws(2, 17, 5)] * 2, [draws(3, 17, 5)]])
def test_tokens_that_do_not_pair_are_refused(targets):
    with pytest.raises(ShapeError, match=r"projected tokens \[\[2, 17, 5\]\] and tokens of the target encoders"):
        alignment_loss([draws(2, 17, 5)], targets)


def test_times_are_uniform_or_have_a_lognormal_ratio():
    uniform = draw_reg_times(100_000, REGLossConfig(), torch.Generator().manual_seed(0))
    lognormal = draw_reg_times(100_000, REGLossConfig(weighting="lognormal"), torch.Generator().manual_seed(0))
    assert uniform.std() == pytest.approx(12**-0.5, abs=0.002)
    assert lognormal.std() == pytest.approx(0.208, abs=0.002)
    assert lognormal.mean() == pytest.approx(0.5, abs=0.002)
