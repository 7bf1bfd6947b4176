"""Single parts of the trainer."""

from __future__ import annotations

import json

import pytest
import torch

from trainer.config import AdamConfig, GPTAdamConfig
from trainer.metrics import JSONLLog, Means, read_log
from trainer.optimizer import build_adam, learning_rate


def test_learning_rate_rises_then_follows_a_half_cosine() -> None:
    config = AdamConfig(lr=1.0, warmup_kimg=0.1, cosine_decay=True)
    assert learning_rate(config, 0, 1100, 1) == pytest.approx(1 / 101)
    assert learning_rate(config, 100, 1100, 1) == pytest.approx(1.0)
    assert learning_rate(config, 600, 1100, 1) == pytest.approx(0.5)
    assert learning_rate(config, 1100, 1100, 1) == pytest.approx(0.0, abs=1e-12)


def test_learning_rate_is_constant_by_default() -> None:
    assert {learning_rate(AdamConfig(lr=0.5), nimg, 1000, 1) for nimg in (0, 500, 999)} == {0.5}


@pytest.mark.parametrize("cosine_decay", [False, True])
def test_learning_rate_reaches_its_value_with_the_last_step_of_a_warm_up_from_a_given_rate(cosine_decay) -> None:
    config = AdamConfig(lr=1.0, warmup_kimg=0.04, warmup_init_lr=0.2, cosine_decay=cosine_decay)
    rates = [learning_rate(config, nimg, 10**9, batch_size=8) for nimg in range(0, 64, 8)]
    assert rates == pytest.approx([0.36, 0.52, 0.68, 0.84, 1.0, 1.0, 1.0, 1.0])


def test_weight_decay_may_leave_out_norms_and_biases() -> None:
    layer = torch.nn.Linear(2, 2)
    for decay_vectors, kept in ((False, 1.0), (True, 0.95)):
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.ones_(layer.bias)
        config = GPTAdamConfig(lr=1.0, decay_vectors=decay_vectors)
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        build_adam(dict(layer.named_parameters()), config, fused=False).step()
        torch.testing.assert_close(layer.weight, torch.full((2, 2), 0.95))
        torch.testing.assert_close(layer.bias, torch.full((2,), kept))


def test_log_is_monotone_after_a_resume_and_drops_a_half_written_line(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [{"progress/nimg": n, "loss/total": 1.0 / n} for n in (4, 8, 12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"progress/nimg": 16, "lo')
    log = JSONLLog(path, resumed_nimg=8)
    log.write({"progress/nimg": 12, "loss/total": 0.5})
    assert [line["progress/nimg"] for line in read_log(path)] == [4, 8, 12]
    assert read_log(path)[-1]["loss/total"] == 0.5


def test_means_go_on_exactly_from_their_state() -> None:
    whole, first, second = Means(), Means(), Means()
    for value in (0.1, 0.2):
        whole.add({"a": value})
        first.add({"a": value})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for means in (whole, second):
        means.add({"a": 0.3, "b": 1.0})
    assert whole.take() == second.take()
    assert whole.take() == {}
