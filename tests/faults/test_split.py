"""The same global batch on 4, 2 and 1 ranks."""

from __future__ import annotations

import os

from safetensors.torch import load_file, save_file

from tests.faults.warm import Run
from tests.trainer.test_adversarial import STYLEGAN_T
from trainer.metrics import read_log

SPLITS = ((4, 1), (2, 2), (1, 4))  # ranks, micro-batches on each


def filled_and_recorded() -> None:
    """Begin with weights that hide no gradient, and keep the gradients of the first step."""
    from tests.tiny import fill_weights
    from trainer.trainer import Trainer

    start, of_all_ranks = Trainer._start, Trainer._of_all_ranks

    def start_filled(self):
        start(self)
        fill_weights(self.system.tokenizer)

    def recorded(self, values):
        if self.step == 0 and os.environ.get("RANK", "0") == "0":
            (phase,) = [phase for phase in self.system.phases if phase.gradient_norm in values]
            gradients = {name: p.grad.contiguous() for name, p in phase.parameters.items() if p.grad is not None}
            save_file(gradients, self.run_dir / f"gradients-{phase.name}.safetensors")
        return of_all_ranks(self, values)

    Trainer._start, Trainer._of_all_ranks = start_filled, recorded


def test_4_2_and_1_ranks_compute_the_same(config_file, tmp_path) -> None:
    for ranks, accumulate in SPLITS:
        changes = {
            **STYLEGAN_T,
            # A quarter of this small image ends in maps of 1 x 1, whose group norms amplify rounding a hundredfold.
            "equivariance.use_equivariance_regularization": False,
            "optimizer": {name: {"lr": 1e-4} for name in ("generator", "discriminator")},  # as published
            "training.accumulate_gradients": accumulate,
            "training.total_kimg": 0.016,
            "training.kimg_per_tick": 0.004,
            "checkpoint.network_snapshot_ticks": 1000,
        }
        assert Run(config_file(f"on{ranks}", changes), ranks, fault=filled_and_recorded).wait() == [0] * ranks
    logs = [read_log(tmp_path / f"on{ranks}" / "log.jsonl") for ranks, _ in SPLITS]
    losses = [key for key in logs[0][0] if key.startswith(("loss/", "discriminator/")) and not key.endswith("_signs")]
    assert {"loss/total", "loss/vf", "loss/stylegan_t", "discriminator/stylegan_t"} <= set(losses)
    for log in logs[:-1]:
        for key in losses:
            assert abs(log[0][key] - logs[-1][0][key]) <= 1e-6 * max(1, abs(logs[-1][0][key])), key
            assert abs(log[-1][key] - logs[-1][-1][key]) <= 1e-3 * max(1, abs(logs[-1][-1][key])), key
        assert log[-1]["progress/step"] == 4
    for phase in ("generator", "discriminator"):
        gradients = [load_file(tmp_path / f"on{ranks}" / f"gradients-{phase}.safetensors") for ranks, _ in SPLITS]
        largest = max(gradient.abs().max().item() for gradient in gradients[-1].values())
        for found in gradients[:-1]:
            assert found.keys() == gradients[-1].keys()
            for name in found:
                assert (found[name] - gradients[-1][name]).abs().max().item() <= 1e-6 * largest, name
