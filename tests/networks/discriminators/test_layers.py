"""Spectral and local batch normalisation."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ShapeError
from networks.config import LOCAL_BATCH, local_groups
from networks.discriminators.heads import DiscriminatorHead
from networks.discriminators.layers import LocalBatchNorm, SpectralConv1d


def classic_spectral_norm(conv: SpectralConv1d) -> torch.nn.Module:
    """torch's own layer in its hook form, with the same weights and vectors."""
    n_out, n_in, size = conv.weight_orig.shape
    plain = torch.nn.Conv1d(n_in, n_out, size, padding=size // 2, padding_mode="circular")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        classic = torch.nn.utils.spectral_norm(plain)
    classic.load_state_dict(conv.state_dict())  # the names agree, too
    return classic


def test_spectral_convolution_equals_torchs_hook_form_pass_by_pass() -> None:
    conv = SpectralConv1d(6, 4, 9)
    conv.weight_u.copy_(torch.nn.functional.normalize(torch.randn(4), dim=0))
    classic = classic_spectral_norm(conv)
    for advance in (True, True, False, True):
        classic.train(advance)
        x = torch.randn(2, 6, 10, requires_grad=True)
        found, expected = conv(x, update_norms=advance), classic(x)
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.allclose(conv.weight_u, classic.weight_u, atol=1e-6)
        gradients = torch.autograd.grad(found.square().sum(), [x, conv.weight_orig, conv.bias])
        reference = torch.autograd.grad(expected.square().sum(), [x, classic.weight_orig, classic.bias])
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(gradients, reference, strict=True))


def test_norms_advance_only_when_asked_whatever_the_mode() -> None:
    head = DiscriminatorHead(8)
    before = {name: value.clone() for name, value in head.named_buffers()}
    for mode in (True, False):
        head.train(mode)(torch.randn(2, 8, 10))
        assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())
    head.first.conv.weight_orig.data.normal_()
    head(torch.randn(2, 8, 10), update_norms=True)
    assert not torch.equal(head.first.conv.weight_u, before["first.conv.weight_u"])


def test_two_passes_that_advance_the_norms_may_come_before_one_backward_pass() -> None:
    head = DiscriminatorHead(8)
    fake, real = (head(torch.randn(2, 8, 10), update_norms=True) for _ in range(2))
    (fake.mean() - real.mean()).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_a_new_layer_starts_with_its_largest_singular_value_near_one() -> None:
    torch.manual_seed(0)
    conv = SpectralConv1d(16, 16, 9)
    sigma = torch.linalg.svdvals(conv.weight_orig.flatten(1))[0]
    estimate = conv.weight_u @ conv.weight_orig.flatten(1) @ conv.weight_v
    assert 0.9 < (estimate / sigma).item() <= 1.0001


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40))
def test_local_batch_norm_equals_torchs_on_each_group_or_refuses(batch: int) -> None:
    norm, torchs = LocalBatchNorm(3), torch.nn.BatchNorm2d(3, track_running_stats=False)
    for parameter in ("weight", "bias"):
        values = torch.randn(3)
        getattr(norm, parameter).data.copy_(values)
        getattr(torchs, parameter).data.copy_(values)
    x = torch.randn(batch, 3, 4, 5)
    groups = local_groups(batch)
    if groups is None:
        with pytest.raises(ShapeError, match=f"found a batch of {batch} images, which cannot be cut into equal groups"):
            norm(x)
        return
    assert batch // groups <= LOCAL_BATCH
    expected = torch.cat([torchs(part) for part in x.split(batch // groups)])
    for mode in (True, False):
        assert torch.allclose(norm.train(mode)(x), expected, atol=1e-5)


def test_a_conditional_head_tells_labels_apart() -> None:
    torch.manual_seed(0)
    head = DiscriminatorHead(8, label_dim=3)
    x = torch.randn(1, 8, 10).expand(2, -1, -1)
    logits = head(x, torch.eye(3)[:2])
    assert logits.shape == (2, 1, 10)
    assert not torch.allclose(logits[0], logits[1])
    same = head(x, torch.eye(3)[[1, 1]])
    assert torch.allclose(same[0], same[1])
