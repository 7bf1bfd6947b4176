"""Activation checkpointing of the upper decoder blocks."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.test_adversarial import AT, STYLEGAN_T, all_parameters, filled
from trainer.dry_run import kept_bytes

CASES = [{}, {"training.precision": "bf16"}, {"decoder.use_convnext": False, "decoder.channel_base": 8192}]


@pytest.mark.parametrize("changes", CASES)
def test_recomputed_blocks_give_the_same_gradients_and_keep_less(make_config, changes) -> None:
    gradients, kept = [], []
    for above in (None, 8):
        switches = {"training.recompute_above_resolution": above, "equivariance.use_equivariance_regularization": False}
        trainer = filled(make_config(changes={**STYLEGAN_T, **switches, **changes}))
        system, batch = trainer.system, next(trainer.data.micro_batches(0))
        kept.append(kept_bytes(lambda system=system, batch=batch: system._pass(system.tokenizer, batch, AT, "")))
        system.backward(system.phases[-1], batch, AT)
        gradients.append({name: p.grad for name, p in all_parameters(trainer) if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert kept[1] < 0.7 * kept[0]
