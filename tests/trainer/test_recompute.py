"""Activation checkpointing of the upper decoder blocks."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tests.tiny import fill_weights
from tests.trainer.conftest import build_trainer
from tests.trainer.test_adversarial import AT, STYLEGAN_T

CASES = [{}, {"training.precision": "bf16"}, {"decoder.use_convnext": False, "decoder.channel_base": 8192}]


@pytest.mark.parametrize("changes", CASES)
def test_recomputed_blocks_give_the_same_gradients_and_keep_less(make_config, changes) -> None:
    gradients, kept = [], []
    for above in (None, 8):
        switches = {"training.recompute_above_resolution": above, "equivariance.use_equivariance_regularization": False}
        trainer = build_trainer(make_config(changes={**STYLEGAN_T, **switches, **changes}))
        fill_weights(trainer.system.tokenizer)
        system, batch = trainer.system, next(trainer.data.micro_batches(0))
        kept.append(bytes_kept(lambda system=system, batch=batch: system._pass(system.tokenizer, batch, AT, "")))
        system.backward(system.phases[-1], batch, AT)
        gradients.append({n: p.grad for n, p in system.tokenizer.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert kept[1] < 0.7 * kept[0]


def bytes_kept(call) -> int:
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call()
    assert output is not None
    return sum(storages.values())
