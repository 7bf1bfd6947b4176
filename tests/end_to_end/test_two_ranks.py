"""Two gloo ranks compute what one rank with two micro-batches computes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.distributed import world_size
from configs.schema import load_config
from data.pipeline import TrainingData
from tests.faults.ranks import run_ranks
from tests.tiny import DISCRETE, SMALL, fill_weights, tiny_values, write_config
from tests.trainer.conftest import merged
from trainer.systems.vfm_vae import VFMVAESystem
from trainer.trainer import Trainer

# Shared as 3 and 2 images by two ranks.
VALIDATION = {
    "source": "webdataset",
    "num_images": 5,
    "every_ticks": 1,
    "batch_size_per_gpu": 2,
    "perceptual": "none",
    "frechet": "none",
}


def train(config_file: Path, gradients_file: Path, rank: int) -> None:
    """What every rank runs: from weights that hide no gradient; rank 0 keeps the gradients of the first step."""
    config, device = load_config(config_file).config, torch.device("cpu")
    accumulate = config.training.accumulate_gradients
    micro_batch = config.training.batch_size // (world_size() * accumulate)
    data = TrainingData(config.data, 3, config.training.batch_size, micro_batch, rank, world_size(), accumulate)
    trainer = Trainer(config, VFMVAESystem(config, device), data, device)
    fill_weights(trainer.system.tokenizer)
    (phase,) = trainer.system.phases
    optimizer, gradients = trainer.optimizers["generator"], {}
    step = optimizer.step

    def recorded() -> None:
        if not gradients:
            gradients.update({name: p.grad.clone() for name, p in phase.parameters.items()})
        step()

    optimizer.step = recorded
    trainer.run()
    if rank == 0:
        save_file(gradients, gradients_file)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="all losses"),
        pytest.param({"losses.multiscale_pixel": None, "losses.vf": None}, id="no pyramid"),
        pytest.param({**DISCRETE, "losses.vf": None}, id="discrete", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_equal_one_rank_with_accumulation_two(changes, tiny_encoder, tiny_data, tmp_path) -> None:
    """Also where no loss reads the images of intermediate resolutions (the step after the first must still work)."""
    logs, gradients = [], []
    for name, ranks, accumulate in (("one", 1, 2), ("two", 2, 1)):
        settings = {
            "training.accumulate_gradients": accumulate,
            "training.total_kimg": 0.008,
            "training.kimg_per_tick": 0.004,
            "validation": {**VALIDATION, "path": str(tiny_data)},
            **SMALL,
            **changes,
        }
        values = merged(tiny_values(tiny_encoder, tiny_data, tmp_path / name), settings)
        config = write_config(values, tmp_path / f"{name}.yaml")
        gradients_file = tmp_path / f"{name}.safetensors"
        work = partial(train, config, gradients_file)
        if ranks == 1:
            work(0)
        else:
            run_ranks(ranks, work, tmp_path, timeout_s=120)
        logs.append([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()])
        gradients.append(load_file(tmp_path / f"{name}.safetensors"))

    first_step = [log[0] for log in logs]
    losses = [key for key in first_step[0] if key.startswith("loss/")]
    assert {"loss/total", "loss/l1_pixel", "loss/vq" if changes.get("losses.vq") else "loss/kl"} <= set(losses)
    for key in losses:
        one, two = (line[key] for line in first_step)
        assert abs(one - two) <= 1e-6 * max(1, abs(one)), key
    for key in (key for key in first_step[0] if key.startswith("validation/")):
        assert first_step[1][key] == pytest.approx(first_step[0][key], rel=1e-4), key
    assert first_step[1]["validation/images"] == VALIDATION["num_images"]
    one, two = gradients
    assert one.keys() == two.keys()
    largest = max(g.abs().max().item() for g in one.values())
    for name in one:
        difference = (one[name] - two[name]).abs().max().item()
        assert difference <= 1e-6 * largest, name
        assert difference <= 1e-3 * one[name].abs().max().item() + 1e-9, name
    assert [line["progress/nimg"] for line in logs[1]] == [4, 8]
