"""A run with every loss and both discriminators that stops at any step and goes on equals one that never stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import Source
from configs.schema import check
from configs.vfm_vae import VFMVAEExperiment
from losses import losses_of, warmup
from tests.faults.conftest import largest_difference
from tests.tiny import SMALL, tiny_values, write_class_texts, write_data
from tests.trainer.conftest import build_trainer, comparable, merged, run_until, state_of
from trainer.trainer import Trainer

# 10 samples in batches of 2: an epoch is 5 steps. Ticks end after steps 1, 3, 5 and 6.
STEPS, SAMPLES, BATCH = 6, 10, 2
STOPS = {"first step": 1, "mid-epoch, mid-tick": 4, "end of the epoch": 5, "last step": STEPS}

# Of the terms of this system, those of the discrete mode and LPIPS, whose VGG16 is not at hand, are missing here.
LEFT_OUT = {"vq", "entropy", "perceptual"}
EVERYTHING = {
    **SMALL,
    "data.label_type": "cls2text",
    "data.color_augmentation": True,
    "decoder.conditional": True,
    "decoder.use_cross_attn": True,
    "discriminator": {
        "use_stylegan_t_discriminator": True,
        "use_patchgan_discriminator": True,
        "get_interm_feat": True,
        "backbone": "random_tiny",
        "blur_fade_kimg": 2,
    },
    "losses.multiscale_pixel.end_kimg": 0.008,
    "losses.efficientnet_perceptual": {"weight": 1.0},
    "losses.ssim": {"weight": 0.3, "start_kimg": 0.004},
    "losses.stylegan_t": {"weight": 1.0, "use_disc_warmup": True},
    "losses.patchgan": {"weight": 0.5},
    "losses.feature_matching": {"weight": 2.0},
    "losses.matching_aware": {"weight": 0.5},
    "optimizer.generator": {"lr": 1e-3, "warmup_kimg": 0.004, "cosine_decay": True, "max_grad_norm": 1.0},
    "optimizer.discriminator": {"lr": 1e-3, "weight_decay": 0.01},
    "training.batch_size": BATCH,
    "training.total_kimg": STEPS * BATCH / 1000,
    "training.kimg_per_tick": 2 * BATCH / 1000,
    "checkpoint.network_snapshot_ticks": 100,  # the stop writes one, and the end
}


pytestmark = pytest.mark.usefixtures("narrow_patchgan")


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind.

    Attributes:
        tensors: all networks, averages and optimisers.
        counters: everything else of a checkpoint, the history of the guard and the warm-up included.
        log: its lines, without time, rate and memory.
        keys: of the samples of each step of this process.
    """

    tensors: dict[str, torch.Tensor]
    counters: dict[str, Any]
    log: list[dict[str, Any]]
    keys: list[list[str]]


def outcome_of(trainer: Trainer, until: int | None = None) -> Outcome:
    """Run a trainer to the end, or to a stop."""
    keys, micro_batches = [], trainer.data.micro_batches

    def recorded(step: int) -> Iterator:
        for batch in micro_batches(step):
            keys.append(batch.keys)
            yield batch

    trainer.data.micro_batches = recorded
    trainer.system.warmup._awaited["stylegan_t"].largest_change = math.inf
    run_until(trainer, until)
    # Not the wall time, and not the number of checkpoints: a stop writes one more.
    counters = {k: v for k, v in trainer._state().items() if k not in ("train_seconds", "checkpoints_written")}
    return Outcome(state_of(trainer), counters, comparable(trainer.run_dir), keys)


@pytest.fixture(scope="module", autouse=True)
def short_warmup() -> Iterator[None]:
    """Let a loss settle in three steps, at any height: two values a window, two calm ones in a row."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WINDOW", 2), ("LOW", math.inf), ("CALM_IN_A_ROW", 2)):
            patch.setattr(warmup, name, value)
        yield


@pytest.fixture(scope="module")
def config_of(tiny_text_encoder, tiny_clip, tmp_path_factory) -> Callable[[Path], VFMVAEExperiment]:
    """The configuration of a run in this folder."""
    folder = tmp_path_factory.mktemp("everything")
    data = write_data(folder / "data", SAMPLES, shard_size=4)
    changes = {
        **EVERYTHING,
        "data.cls_to_text_path": str(write_class_texts(folder / "texts.json")),
        "losses.clip": {"weight": 0.1, "clip_path": str(tiny_clip)},
    }

    def make(run_dir: Path) -> VFMVAEExperiment:
        values = merged(tiny_values(tiny_text_encoder, data, run_dir), changes)
        return check(Source("everything.yaml", values), require_runnable=True).config

    return make


@pytest.fixture(scope="module")
def undisturbed(config_of, tmp_path_factory) -> Outcome:
    return outcome_of(build_trainer(config_of(tmp_path_factory.mktemp("undisturbed"))))


def test_every_loss_and_both_discriminators_take_part(config_of, undisturbed, tmp_path) -> None:
    config = config_of(tmp_path)
    assert set(config.enabled_losses()) == set(losses_of("vfm_vae")) - LEFT_OUT
    reported = {name.split("/")[1] for line in undisturbed.log for name in line if name.startswith("loss/")}
    judged = {name.split("/")[1] for line in undisturbed.log for name in line if name.startswith("discriminator/")}
    assert reported | judged == set(losses_of("vfm_vae")) - LEFT_OUT | {"total"}
    assert judged == {"stylegan_t", "patchgan", "matching_aware", "total"}
    with_stylegan_t = ["loss/stylegan_t" in line for line in undisturbed.log]
    assert with_stylegan_t == [False, False, True, True]  # the warm-up ends after step 3
    norms = undisturbed.counters["guard"]["norms"]
    assert {phase: len(history) for phase, history in norms.items()} == {"discriminator": STEPS, "generator": STEPS}


@pytest.mark.parametrize("stop_at", STOPS.values(), ids=STOPS.keys())
def test_a_run_that_stops_and_goes_on_equals_one_that_did_not(config_of, undisturbed, tmp_path, stop_at: int) -> None:
    config = config_of(tmp_path / "stopped")
    before = outcome_of(build_trainer(config), until=stop_at)
    assert before.counters["step"] == stop_at
    after = outcome_of(build_trainer(config))
    assert largest_difference(undisturbed.tensors, after.tensors) == 0
    assert after.counters == undisturbed.counters
    assert after.log == undisturbed.log
    assert [len(before.keys), len(after.keys)] == [stop_at, STEPS - stop_at]
    assert before.keys + after.keys == undisturbed.keys
