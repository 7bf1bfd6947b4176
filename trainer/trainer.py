"""The training loop. It knows steps, phases, ticks and checkpoints; what is trained is the system's business."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from common.checkpoint_folder import checkpoint_path, find_checkpoint
from common.distributed import all_gather, all_reduce, barrier, on_rank_0, raise_together, rank
from common.errors import CheckpointError, UserError
from common.files import write_text_atomically
from data.skips import SkipCounter
from data.stream import MicroBatch, TrainingStream
from evaluation.cost import peak_memory_gb, resident_memory_gb
from networks.checkpoint.origin import Origin
from trainer import checkpointing
from trainer.alarms import silent_deaths
from trainer.backends import Backends, open_backends
from trainer.best import Best, show_best
from trainer.ema import update_ema
from trainer.guard import Guard
from trainer.metrics import JSONLLog, Means
from trainer.optimizer import build_adam, learning_rate
from trainer.parallel import Distributed, gradients_stay_local
from trainer.signals import StopRequest
from trainer.snapshots import save_grid
from trainer.systems.base import MicroStep, Phase, System

if TYPE_CHECKING:
    from configs.experiment import Experiment

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

    def __init__(self, config: Experiment, system: System, data: TrainingStream, device: torch.device):
        self.config, self.system, self.data, self.device = config, system, data, device
        self.settings: dict[str, Any] = config.model_dump(mode="json")
        self.training = config.training
        self.run_dir = Path(config.run.run_dir)
        self.optimizers = {
            phase.name: build_adam(phase.parameters, phase.optimizer, self.training.fused_optimizer)
            for phase in system.phases
        }
        # fp16 gradients below 6e-8 would vanish, so the losses are scaled up for the backward pass.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.training.precision == "fp16")
        self.means = Means()
        self.stop = StopRequest()
        self.step = 0
        self.nimg = round(1000 * self.training.init_kimg)
        self.guard = Guard(config.guard, self.nimg)
        self.total_nimg = round(1000 * self.training.total_kimg)
        if data.steps is not None:
            self.total_nimg = min(self.total_nimg, self.nimg + data.steps * self.training.batch_size)
        self.tick = 0
        self.tick_start_nimg = self.nimg
        self.train_seconds = 0.0
        self.checkpoints_written = 0
        self.save_failures = 0  # in a row
        self.all_save_failures = 0
        self.origin: Origin | None = None
        self.best: Best | None = None
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
            self.backends.close()
            return True
        bar = self._progress_bar()
        try:
            while self._train_until_trouble(bar):
                self._roll_back()
                bar.n = self.nimg  # back to where the checkpoint was
        finally:
            bar.close()
            self.backends.close()
        return self.nimg >= self.total_nimg

    def _train_until_trouble(self, bar: tqdm) -> bool:
        """Train to the end or to a signal (False), or until the guard gives up (True)."""
        batches = self.data.micro_batches(self.step)
        self._start_clocks()
        try:
            while self.nimg < self.total_nimg:
                stop = self.train_step(batches)
                bar.update(self.training.batch_size)
                done = self.nimg >= self.total_nimg
                if self.guard.gives_up:
                    return True
                if self._tick_is_over() or done:
                    self._end_tick(done, bar)
                if stop and not done:
                    self._save(is_last=True)
                    log.warning("Stopped by a signal after %s images; the same command goes on.", f"{self.nimg:,}")
                    return False
        finally:
            batches.close()
        return False

    def _start(self) -> None:
        """Resume, or start fresh; open the log."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        folder = on_rank_0(lambda: checkpointing.newest(self.run_dir))
        if folder is not None:
            self._resume(folder)
            log.info("Resumed from %s: %s images, step %d.", folder, f"{self.nimg:,}", self.step)
        else:
            self._open_log(-1)
            self.saved_nimg = None
            if rank() == 0:
                show_best(self.run_dir, None)
            if self.training.init_from is not None:
                self._take_initial(self.training.init_from)
            else:
                log.info("No checkpoint in %s yet: starting from scratch.", self.run_dir)
        self.backends = Backends({})
        if rank() == 0:
            resumed_nimg = -1 if self.saved_nimg is None else self.saved_nimg
            self.backends = open_backends(self.config.logging, self.run_dir, self.settings, resumed_nimg)
            write_text_atomically(self.run_dir / "config.yaml", yaml.safe_dump(self.settings, sort_keys=False))
        log.info("%s", self.system.summary())
        log.info("%s", self.data.describe())
        barrier()

    def _take_initial(self, path: str) -> None:
        """Start with what an earlier run has learnt."""
        initial = self.system.load_initial(path)
        log.info("Started with %s.", initial.taken)
        if self.training.init_optimizer:
            checkpointing.load_optimizers(find_checkpoint(path, log.warning), self.system, self.optimizers)
            log.info("The optimisers go on from their state there.")
        self.origin = initial.origin
        if self.origin is not None:
            log.info("What this run writes derives from %s.", self.origin)

    def _resume(self, folder: Path) -> None:
        """Take everything back to where it was when a checkpoint was written, the log too."""
        data_sha256 = self.data.fingerprint()
        self._load_state(checkpointing.load(folder, self.system, self.optimizers, self.config, data_sha256))
        self._open_log(self.nimg)
        self.saved_nimg = self.nimg
        self.best = on_rank_0(self._find_best)

    def _find_best(self) -> Best | None:
        """The best checkpoint that is still here, shown by its link."""
        best = self.best
        if best is not None and not checkpoint_path(self.run_dir, best.nimg).is_dir():
            log.warning("%s is gone, which was the best by validation.", checkpoint_path(self.run_dir, best.nimg))
            best = None
        show_best(self.run_dir, best)
        return best

    def _open_log(self, resumed_nimg: int) -> None:
        if rank() == 0:
            self.log = JSONLLog(self.run_dir / "log.jsonl", resumed_nimg)

    def _roll_back(self) -> None:
        """Go back to the last checkpoint, once in a run, and from there leave out the steps that were refused.

        Raises: UserError if that was tried before, or there is no checkpoint.
        """
        guard, refused = self.guard, list(self.guard.refused)
        folder = None if guard.rolled_back else on_rank_0(lambda: checkpointing.newest(self.run_dir))
        if folder is None:
            raise UserError(
                f"training stopped at step {self.step}: {guard.in_a_row} steps in a row were refused"
                + (", after a roll-back already" if guard.rolled_back else ", and there is no checkpoint to go back to")
                + f" (last: {guard.last_trouble}). Look at the data of these steps, or go on in a new run.run_dir from "
                "this run's weights (training.init_from) with a lower learning rate."
            )
        given_up_at = self.step
        self._resume(folder)
        guard.after_roll_back(self.step, refused)
        log.warning(
            "Step %d: %d steps in a row were refused; rolled back to %s, whose next steps leave out %s.",
            given_up_at,
            self.config.guard.max_skipped_steps,
            folder,
            guard.left_out,
        )

    def _start_clocks(self) -> None:
        self._clock = time.monotonic()
        self._maintenance_seconds = 0.0
        self._start_tick_clock()

    def _start_tick_clock(self) -> None:
        self._tick_clock, self._tick_clock_nimg, self._data_seconds = time.monotonic(), self.nimg, 0.0

    # --- a step --------------------------------------------------------------------------------------------------

    def train_step(self, batches: Iterator[MicroBatch]) -> bool:
        """All phases on one global batch, then the EMA. Returns whether any rank was asked to stop."""
        micro_batches, stop = self._fetch(batches)
        if self.step in self.guard.left_out:
            self.means.add({"guard/left_out": 1.0})
        else:
            # A phase that is refused ends the step: the phases after it would train on the same bad batch.
            phases = [phase for phase in self.system.phases if self.system.takes_part(phase, self.nimg)]
            values: dict[str, float] = {}
            accepted = all(self.train_phase(phase, micro_batches, values) for phase in phases)
            self.guard.count(self.step, accepted)
            if accepted:
                self._update_averages()
                self.system.after_step(values)
            if self.scaler.is_enabled():
                self.means.add({"loss_scale": self.scaler.get_scale()})
                self.scaler.update()
        self.step += 1
        self.nimg += self.training.batch_size
        now = time.monotonic()
        self.train_seconds += now - self._clock
        self._clock = now
        return stop

    def _update_averages(self) -> None:
        beta = self.system.ema_beta(self.nimg)
        for name, average in self.system.averages.items():
            update_ema(average, self.system.networks[name], beta)

    def _fetch(self, batches: Iterator[MicroBatch]) -> tuple[list[MicroBatch], bool]:
        """The micro-batches of a step, and whether any rank was asked to stop.

        Raises: on every rank, the error of the first rank that has no batch, or DataError if too large a share of the
            samples that all ranks have read was bad.
        """
        waiting, micro_batches, error = time.monotonic(), [], None
        try:
            micro_batches = [next(batches) for _ in range(self.training.accumulate_gradients)]
        except UserError as caught:
            error = caught
        self._data_seconds += time.monotonic() - waiting
        skips = self.data.skips
        counts = [error is not None, self.stop.requested, skips.seen, skips.skipped]
        failed, stop, seen, skipped = all_reduce(torch.tensor(counts, dtype=torch.float64, device=self.device)).tolist()
        if failed:
            raise_together(error)
        if skips.exceeded(seen, skipped):
            skips.gather().check()
        return micro_batches, bool(stop)

    def train_phase(self, phase: Phase, micro_batches: list[MicroBatch], values: dict[str, float]) -> bool:
        """Forward and backward on every micro-batch, then one optimiser step if all ranks agree. Returns whether.

        What an accepted phase reports joins `values`. A refused one leaves everything as it was, also the buffers that
        its forward passes advanced.
        """
        optimizer, accumulate = self.optimizers[phase.name], self.training.accumulate_gradients
        scale = self._loss_scale()
        buffers = [(b, b.clone()) for network in self.system.networks.values() for b in network.buffers()]
        reports = []
        for a, batch in enumerate(micro_batches):
            at = MicroStep(
                seed=self.config.run.random_seed,
                step=self.step,
                nimg=self.nimg,
                micro_batch=rank() * accumulate + a,
                is_first=a == 0,
                share=scale / accumulate,
            )
            with gradients_stay_local(phase.module, unless=a == accumulate - 1):
                reports.append(self.system.backward(phase, batch, at))
        self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in phase.parameters.values() if p.grad is not None])
        own = {name: torch.stack([r[name] for r in reports]).mean() for name in sorted(reports[0])}
        own[phase.gradient_norm] = norm
        if isinstance(phase.module, Distributed):
            own[f"{phase.gradient_norm}/of_rank"] = phase.module.take_local_norm() / scale
        by_rank = self._of_all_ranks(own)
        accepted = self.guard.accepts(phase, self.step, self.nimg, by_rank, scale)
        if accepted:
            rate = learning_rate(phase.optimizer, self.nimg, self.total_nimg, self.training.batch_size)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if phase.optimizer.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(phase.parameters.values(), phase.optimizer.max_grad_norm, norm)
            self.scaler.step(optimizer)
            values |= {name: sum(row[name] for row in by_rank) / len(by_rank) for name in by_rank[0]}
            self.means.add({name: values[name] for name in by_rank[0]})
            self.means.add({f"learning_rate/{phase.name}": rate})
        else:
            for buffer, before in buffers:
                buffer.copy_(before)
        self.means.add({f"guard/skipped_{phase.name}": float(not accepted)})
        optimizer.zero_grad(set_to_none=True)
        return accepted

    def _loss_scale(self) -> float:
        """Factor of the losses in this step's backward passes."""
        if not self.scaler.is_enabled():
            return 1.0
        return self.scaler.scale(torch.ones((), device=self.device)).item()

    def _of_all_ranks(self, values: dict[str, Tensor]) -> list[dict[str, float]]:
        """The values of every rank, with one collective and one wait for the device."""
        own = torch.stack([value.detach().double().to(self.device) for value in values.values()])
        return [dict(zip(values, row, strict=True)) for row in all_gather(own).tolist()]

    # --- a tick --------------------------------------------------------------------------------------------------

    def _tick_is_over(self) -> bool:
        """After the very first step, then after every `kimg_per_tick` thousand images."""
        return self.step == 1 or self.nimg >= self.tick_start_nimg + 1000 * self.training.kimg_per_tick

    def _end_tick(self, done: bool, bar: tqdm) -> None:
        """Write the log line, and what is due of validation, sample grid and checkpoint."""
        ended = time.monotonic()
        line = self._log_line()
        for name, meaning in silent_deaths(line).items():
            line[f"alarm/{name}"] = 1.0
            log.warning("ALARM at step %d, mean over all ranks: %s is %s.", self.step, name, meaning)
        better = self._validate(line) if self._is_due(self._validation_ticks, done) else None
        if rank() == 0:
            self.log.write(line)
            self.backends.write(line)
            shown = {name.removeprefix("loss/"): f"{v:.4g}" for name, v in line.items() if name.startswith("loss/")}
            bar.set_postfix({k: v for k, v in shown.items() if "/" not in k}, refresh=False)
        if self._is_due(self.system.sample_ticks, done):
            self._save_samples()
        self.tick += 1
        self.tick_start_nimg = self.nimg
        due = self.tick > 1 and (self.tick - 1) % self.config.checkpoint.network_snapshot_ticks == 0
        # Not in the middle of trouble: a roll-back must find the weights from before it.
        if done or ((due or better) and self.guard.in_a_row == 0):
            self._save(is_last=done, better=better)
        self._maintenance_seconds = time.monotonic() - ended
        self._start_tick_clock()

    def _is_due(self, every_ticks: int | None, done: bool) -> bool:
        return every_ticks is not None and (done or self.tick % every_ticks == 0)

    @property
    def _validation_ticks(self) -> int | None:
        return None if self.system.validation is None else self.system.validation.every_ticks

    def _validate(self, line: dict[str, Any]) -> Best | None:
        """Validate the EMA; what it found joins the log line. Returns it if the weights are the best so far."""
        started, plan = time.monotonic(), self.system.validation
        result = self.system.validate()
        line |= {f"validation/{name}": value for name, value in result.values.items()}
        line["timing/validation_seconds"] = time.monotonic() - started
        self._save_grid("validation", result.inputs, result.outputs)
        metric = plan.best_metric
        if metric is None or metric not in result.values:
            return None
        found = Best(self.nimg, metric, result.values[metric], plan.fingerprint())
        return found if found.beats(self.best) else None

    def _log_line(self) -> dict[str, Any]:
        seconds = max(time.monotonic() - self._tick_clock, 1e-9)
        skips = self.data.skips.gather()
        line: dict[str, Any] = {
            "progress/tick": self.tick,
            "progress/step": self.step,
            "progress/nimg": self.nimg,
            "progress/kimg": self.nimg / 1000,
            **self.means.take(),
            "checkpoint/failures": self.all_save_failures,
            "data/samples_seen": skips.seen,
            "data/samples_skipped": skips.skipped,
            "timing/images_per_second": (self.nimg - self._tick_clock_nimg) / seconds,
            "timing/data_wait_share": self._data_seconds / seconds,
            "timing/seconds_per_tick": seconds,
            "timing/seconds_per_kimg": 1000 * seconds / max(self.nimg - self._tick_clock_nimg, 1),
            "timing/maintenance_seconds": self._maintenance_seconds,
            "timing/train_seconds": self.train_seconds,
            "timing/timestamp": time.time(),
            "resources/cpu_memory_gb": resident_memory_gb(),
            "resources/peak_memory_gb": peak_memory_gb(self.device),
        }
        line |= {f"data/skipped/{kind}": count for kind, count in skips.by_kind().items()}
        return line

    def _save_samples(self) -> None:
        """Write a grid of the system's samples, on rank 0."""
        if rank() != 0:
            return
        try:
            pictures = self.system.sample_grid(self.data)
        except UserError as error:
            log.warning("There is no sample grid after %s images: %s", f"{self.nimg:,}", error)
            return
        self._save_grid(pictures.name, pictures.inputs, pictures.outputs)

    def _save_grid(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        """Write a grid on rank 0; a training does not end because a picture could not be written."""
        if rank() != 0 or len(inputs) == 0:
            return
        path = self.run_dir / "samples" / f"{name}-{self.nimg:012d}.png"
        try:
            save_grid(inputs, outputs, path)
        except OSError as error:
            log.warning("%s could not be written: %s", path, error)
            return
        self.backends.images(name, path, self.nimg)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self, is_last: bool, better: Best | None = None) -> None:
        """Write a checkpoint on rank 0, unless this point has one already.

        A failure is logged; training goes on, for the checkpoints before it are intact.

        Args:
            better: these weights are the best so far, as a validation has just found.

        Raises: CheckpointError if it keeps happening, or the run would end without its last checkpoint.
        """
        if self.saved_nimg == self.nimg:
            return
        self.checkpoints_written += 1
        best, self.best = self.best, better or self.best
        state = self._state()

        def write() -> OSError | None:
            data_sha256, options = self.data.fingerprint(), self.config.checkpoint
            try:
                checkpointing.save(self.run_dir, self.system, self.optimizers, state, self.config, data_sha256, options)
            except OSError as error:
                return error
            return None

        failure = on_rank_0(write)
        if failure is None:
            self.saved_nimg, self.save_failures = self.nimg, 0
            return
        self.best = best
        self.save_failures += 1
        self.all_save_failures += 1
        log.error("The checkpoint after %s images could not be written: %s", f"{self.nimg:,}", failure)
        if is_last or self.save_failures >= MAX_SAVE_FAILURES:
            raise CheckpointError(
                f"{self.run_dir}: the checkpoint after {self.nimg:,} images could not be written ({failure}). Make "
                "room or mend the folder, then start the same command again: it goes on from the checkpoint before it."
            )

    def _state(self) -> dict[str, Any]:
        """The counters of a checkpoint. Every rank must call it."""
        return {
            "step": self.step,
            "nimg": self.nimg,
            "tick": self.tick,
            "tick_start_nimg": self.tick_start_nimg,
            "train_seconds": self.train_seconds,
            "checkpoints_written": self.checkpoints_written,
            "all_save_failures": self.all_save_failures,
            "derived_from": None if self.origin is None else self.origin.to_json(),
            "best": None if self.best is None else self.best.to_json(),
            "means": self.means.state_dict(),
            "guard": self.guard.state_dict(),
            "scaler": self.scaler.state_dict(),
            "system": self.system.state_dict(),
            "skips": self.data.skips.gather().state_dict(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        for name in (
            "step",
            "nimg",
            "tick",
            "tick_start_nimg",
            "train_seconds",
            "checkpoints_written",
            "all_save_failures",
        ):
            setattr(self, name, state[name])
        self.origin = Origin.from_json(state.get("derived_from"))
        self.best = Best.from_json(state.get("best"))
        self.means.load_state_dict(state["means"])
        self.guard.load_state_dict(state["guard"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.system.load_state_dict(state["system"])
        self.data.skips.load_state_dict(state["skips"] if rank() == 0 else SkipCounter(0).state_dict())

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
