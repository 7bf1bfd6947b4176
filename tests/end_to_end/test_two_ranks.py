"""Two gloo ranks compute what one rank with two micro-batches computes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.tiny import DISCRETE, tiny_values, write_config
from tests.trainer.conftest import merged

SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from configs.schema import load_config
from common.distributed import initialise, finalise, rank, world_size
from data.pipeline import TrainingData
from trainer.systems.vfm_vae import VFMVAESystem
from trainer.trainer import Trainer
from tests.tiny import fill_weights
from safetensors.torch import save_file

config = load_config(sys.argv[1]).config
device = torch.device("cpu")
initialise(device)
accumulate = config.training.accumulate_gradients
micro = config.training.batch_size // (world_size() * accumulate)
data = TrainingData(config.data, 3, config.training.batch_size, micro, rank(), world_size(), accumulate)
trainer = Trainer(config, VFMVAESystem(config, device), data, device)
fill_weights(trainer.system.tokenizer)
(phase,) = trainer.system.phases
gradients = {}
optimizer = trainer.optimizers["generator"]
step = optimizer.step
def recorded():
    if not gradients:
        gradients.update({n: p.grad.clone() for n, p in phase.parameters.items()})
    step()
optimizer.step = recorded
trainer.run()
if rank() == 0:
    save_file(gradients, sys.argv[2])
finalise()
"""


# Shared as 3 and 2 images by two ranks.
VALIDATION = {
    "source": "webdataset",
    "num_images": 5,
    "every_ticks": 1,
    "batch_size_per_gpu": 2,
    "perceptual": "none",
    "frechet": "none",
}


def launch(config: Path, output: Path, ranks: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    processes = []
    for rank in range(ranks):
        here = dict(environment)
        if ranks > 1:
            here |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        command = [sys.executable, "-c", SCRIPT, str(config), str(output)]
        processes.append(subprocess.Popen(command, env=here, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]


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
            **changes,
        }
        values = merged(tiny_values(tiny_encoder, tiny_data, tmp_path / name), settings)
        config = write_config(values, tmp_path / f"{name}.yaml")
        launch(config, tmp_path / f"{name}.safetensors", ranks)
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
