"""The training loop. It knows steps, phases, ticks and checkpoints; what is trained is the system's business."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common.checkpoint_folder import remove_partial_checkpoints
from common.distributed import all_reduce, barrier, broadcast_object, rank
from common.files import write_text_atomically
from data.pipeline import Batch, TrainingData
from evaluation.cost import peak_memory_gb
from trainer import checkpointing
from trainer.backends import WandbBackend
from trainer.ema import ema_beta, update_ema
from trainer.guard import Guard
from trainer.metrics import JSONLLog, Means
from trainer.optimizer import build_adam, learning_rate
from trainer.signals import StopRequest
from trainer.snapshots import save_grid
from trainer.systems.base import MicroStep, Phase, System

if TYPE_CHECKING:
    from configs.schema import VFMVAEExperiment

log = logging.getLogger(__name__)
MAX_SAVE_FAILURES = 3


class Trainer:
    """One run: fresh, or going on from its newest complete checkpoint.

    Args:
        config: the run's configuration.
        system: what is trained.
        data: this rank's training data.
        device: where the networks live.

    Attributes:
        nimg: images seen; with `step`, the only clocks of the run.
        step: optimiser steps done.
    """

    def __init__(self, config: VFMVAEExperiment, system: System, data: TrainingData, device: torch.device):
        self.config, self.system, self.data, self.device = config, system, data, device
        self.settings: dict[str, Any] = config.model_dump(mode="json")
        self.training = config.training
        self.run_dir = Path(config.run.run_dir)
        self.optimizers = {
            phase.name: build_adam(phase.parameters, phase.optimizer, self.training.fused_optimizer)
            for phase in system.phases
        }
        self.guard = Guard(self.training.max_skipped_steps)
        self.means = Means()
        self.stop = StopRequest()
        self.step = 0
        self.nimg = int(1000 * self.training.init_kimg)
        self.total_nimg = int(1000 * self.training.total_kimg)
        if config.data.one_epoch:
            self.total_nimg = min(self.total_nimg, self.nimg + data.steps_per_epoch * self.training.batch_size)
        self.tick = 0
        self.tick_start_nimg = self.nimg
        self.train_seconds = 0.0
        self.checkpoints_written = 0
        self.save_failures = 0
        self._start_clocks()

    # --- a run ---------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Train to the end. Returns False if a signal ended it early (after a checkpoint).

        Raises: UserError for everything that a user can put right.
        """
        self.stop.install()
        self._start()
        if self.nimg >= self.total_nimg:
            log.info("This run is complete: %s images seen, %s wanted.", f"{self.nimg:,}", f"{self.total_nimg:,}")
            return True
        batches = self.data.micro_batches(self.step)
        bar = self._progress_bar()
        self._start_clocks()
        try:
            while self.nimg < self.total_nimg:
                stop = self.train_step(batches)
                bar.update(self.training.batch_size)
                done = self.nimg >= self.total_nimg
                if self._tick_is_over() or done:
                    self._end_tick(done, bar)
                if stop and not done:
                    self._save()
                    log.warning("Stopped by a signal after %s images; the same command goes on.", f"{self.nimg:,}")
                    return False
        finally:
            bar.close()
            batches.close()
            self.backend.close()
        return True

    def _start(self) -> None:
        """Resume, or start fresh; open the log."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            remove_partial_checkpoints(self.run_dir)
        folder = broadcast_object(checkpointing.newest(self.run_dir) if rank() == 0 else None)
        if folder is not None:
            self._load_state(checkpointing.load(folder, self.system, self.optimizers, self.settings))
            log.info("Resumed from %s: %s images, step %d.", folder, f"{self.nimg:,}", self.step)
        elif self.training.init_from is not None:
            taken = self.system.load_initial(self.training.init_from, self.training.init_discriminator)
            log.info("Started with %s.", taken)
        else:
            log.info("No checkpoint in %s yet: starting from scratch.", self.run_dir)
        self.backend = WandbBackend(self.config.logging, self.run_dir, self.settings, active=rank() == 0)
        if rank() == 0:
            self.log = JSONLLog(self.run_dir / "log.jsonl", self.nimg if folder is not None else -1)
            write_text_atomically(self.run_dir / "config.yaml", yaml.safe_dump(self.settings, sort_keys=False))
        log.info("%s", self.system.summary())
        log.info("%s", self.data.describe())
        barrier()

    def _start_clocks(self) -> None:
        self._tick_clock = self._clock = time.monotonic()
        self._tick_clock_nimg = self.nimg
        self._data_seconds = 0.0

    # --- a step --------------------------------------------------------------------------------------------------

    def train_step(self, batches: Iterator[Batch]) -> bool:
        """All phases on one global batch, then the EMA. Returns whether any rank was asked to stop."""
        waiting = time.monotonic()
        micro_batches = [next(batches) for _ in range(self.training.accumulate_gradients)]
        self._data_seconds += time.monotonic() - waiting
        accepted = True
        for phase in self.system.phases:
            accepted &= self._train_phase(phase, micro_batches)
        if accepted:
            beta = ema_beta(self.nimg, self.training.batch_size, self.training.ema_kimg, self.training.ema_rampup)
            for name, average in self.system.averages.items():
                update_ema(average, self.system.networks[name], beta)
        self.step += 1
        self.nimg += self.training.batch_size
        now = time.monotonic()
        self.train_seconds += now - self._clock
        self._clock = now
        return bool(all_reduce(torch.tensor(float(self.stop.requested), device=self.device), "max").item())

    def _train_phase(self, phase: Phase, micro_batches: list[Batch]) -> bool:
        """Forward and backward on every micro-batch, then one optimiser step if all ranks agree. Returns whether."""
        optimizer, accumulate = self.optimizers[phase.name], self.training.accumulate_gradients
        reports = []
        for a, batch in enumerate(micro_batches):
            at = MicroStep(
                seed=self.config.run.random_seed,
                step=self.step,
                nimg=self.nimg,
                micro_batch=rank() * accumulate + a,
                is_first=a == 0,
                share=1 / accumulate,
            )
            with _gradients_stay_local(phase, unless=a == accumulate - 1):
                reports.append(self.system.backward(phase, batch, at))
        gradients = [p.grad for p in phase.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        own = {name: torch.stack([r[name] for r in reports]).mean() for name in sorted(reports[0])}
        own[f"gradient_norm/{phase.name}"] = norm
        agreed = self._mean_over_ranks(own)
        accepted = self.guard.accepts(self.step, *agreed)
        if accepted:
            rate = learning_rate(phase.optimizer, self.nimg, self.total_nimg)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if phase.optimizer.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(
                    phase.parameters.values(), phase.optimizer.max_grad_norm, norm.to(self.device)
                )
            optimizer.step()
            self.means.add({**agreed[0], f"learning_rate/{phase.name}": rate})
        self.means.add({f"guard/skipped_{phase.name}": float(not accepted)})
        optimizer.zero_grad(set_to_none=True)
        return accepted

    def _mean_over_ranks(self, values: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        """(means over ranks, own values), with one reduction and one wait for the device."""
        own = torch.stack([value.detach().double().to(self.device) for value in values.values()])
        mean = all_reduce(own.clone(), "mean")
        both = torch.stack([mean, own]).tolist()
        return dict(zip(values, both[0], strict=True)), dict(zip(values, both[1], strict=True))

    # --- a tick --------------------------------------------------------------------------------------------------

    def _tick_is_over(self) -> bool:
        """After the very first step, then after every `kimg_per_tick` thousand images."""
        return self.step == 1 or self.nimg >= self.tick_start_nimg + 1000 * self.training.kimg_per_tick

    def _end_tick(self, done: bool, bar: tqdm) -> None:
        """Write the log line, and what is due of sample grid and checkpoint."""
        line = self._log_line()
        if rank() == 0:
            self.log.write(line)
            self.backend.write(line)
            shown = {name.removeprefix("loss/"): f"{v:.4g}" for name, v in line.items() if name.startswith("loss/")}
            bar.set_postfix({k: v for k, v in shown.items() if "/" not in k}, refresh=False)
        every = self.config.logging.image_snapshot_ticks
        if every and (done or self.tick % every == 0):
            self._save_samples()
        self.tick += 1
        self.tick_start_nimg = self.nimg
        if done or (self.tick > 1 and (self.tick - 1) % self.config.checkpoint.network_snapshot_ticks == 0):
            self._save()
        self._tick_clock, self._tick_clock_nimg, self._data_seconds = time.monotonic(), self.nimg, 0.0

    def _log_line(self) -> dict[str, Any]:
        seconds = max(time.monotonic() - self._tick_clock, 1e-9)
        skips = self.data.skips.gather()
        line: dict[str, Any] = {
            "progress/tick": self.tick,
            "progress/step": self.step,
            "progress/nimg": self.nimg,
            "progress/kimg": self.nimg / 1000,
            **self.means.take(),
            "data/samples_seen": skips.seen,
            "data/samples_skipped": skips.skipped,
            "timing/images_per_second": (self.nimg - self._tick_clock_nimg) / seconds,
            "timing/data_wait_share": self._data_seconds / seconds,
            "timing/train_seconds": self.train_seconds,
            "timing/timestamp": time.time(),
            "resources/peak_memory_gb": peak_memory_gb(self.device),
        }
        line |= {f"data/skipped/{kind}": count for kind, count in skips.by_kind().items()}
        return line

    def _save_samples(self) -> None:
        if rank() != 0:
            return
        inputs = self.data.preview(self.config.logging.image_snapshot_count)
        path = self.run_dir / "samples" / f"reconstructions-{self.nimg:012d}.png"
        save_grid(inputs, self.system.sample_images(inputs), path)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint on rank 0. A failure is logged, and ends the run only when it keeps happening."""
        self.checkpoints_written += 1
        state = self._state()
        failure = None
        if rank() == 0:
            try:
                checkpointing.save(
                    self.run_dir, self.system, self.optimizers, state, self.settings, self.config.checkpoint
                )
            except OSError as error:
                failure = error
        failure = broadcast_object(failure)
        self.save_failures = 0 if failure is None else self.save_failures + 1
        if failure is not None:
            log.error("The checkpoint after %s images could not be written: %s", f"{self.nimg:,}", failure)
            if self.save_failures >= MAX_SAVE_FAILURES:
                raise failure

    def _state(self) -> dict[str, Any]:
        """The counters of a checkpoint. Every rank must call it."""
        return {
            "step": self.step,
            "nimg": self.nimg,
            "tick": self.tick,
            "tick_start_nimg": self.tick_start_nimg,
            "train_seconds": self.train_seconds,
            "checkpoints_written": self.checkpoints_written,
            "means": self.means.state_dict(),
            "guard": self.guard.state_dict(),
            "skips": self.data.skips.gather().state_dict(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        for name in ("step", "nimg", "tick", "tick_start_nimg", "train_seconds", "checkpoints_written"):
            setattr(self, name, state[name])
        self.means.load_state_dict(state["means"])
        self.guard.load_state_dict(state["guard"])
        if rank() == 0:
            self.data.skips.load_state_dict(state["skips"])

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.total_nimg,
            initial=self.nimg,
            unit="img",
            unit_scale=True,
            disable=rank() != 0,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            smoothing=0.1,
            desc="training",
        )


def _gradients_stay_local(phase: Phase, unless: bool) -> contextlib.AbstractContextManager:
    """Only the last micro-batch of a step averages gradients over ranks."""
    if unless or not isinstance(phase.module, DistributedDataParallel):
        return contextlib.nullcontext()
    return phase.module.no_sync()
