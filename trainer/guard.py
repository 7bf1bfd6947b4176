"""Before an optimiser step all ranks agree that losses and gradient are sound; otherwise nobody steps.

Three rules make a step unsafe: a value that is not finite; a loss that its monitor refuses (a reconstruction loss that
jumps, a discriminator loss out of bounds); and a gradient norm that is a spike. Every rank judges the values of all
ranks, so all come to the same answer and can name the rank and the term.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from common.distributed import rank
from trainer.config import GuardConfig
from trainer.systems.base import Phase

log = logging.getLogger(__name__)

SMALLEST_REFERENCE = 1e-6  # a jump from a loss that was practically zero means nothing
NORM_HISTORY = 100  # accepted steps whose median gradient norm a spike is measured by
SPIKES_FROM_STEP = 20


class LossMonitor:
    """Which losses make a step unsafe (the reference's safe-loss monitoring).

    Reconstruction losses are compared with their values at the last accepted step, discriminator losses with a bound
    that their phase brings along.

    Args:
        config: the factors.
        start_nimg: images seen when the run began; the rules hold after `grace_kimg` more.
    """

    def __init__(self, config: GuardConfig, start_nimg: int):
        self.config = config
        self.active_after = start_nimg + 1000 * config.grace_kimg
        self.references: dict[str, float] = {}

    def unsafe(self, values: Mapping[str, float], phase: Phase, nimg: int) -> dict[str, str]:
        """Unsafe terms of a phase with the reason, after `nimg` images."""
        if self.config.grace_kimg > 0 and nimg <= self.active_after:
            return {}
        found = _not_finite(values)
        for name in phase.reconstruction_losses & values.keys():
            value, reference = values[name], self.references.get(name, 0.0)
            if reference > SMALLEST_REFERENCE and value > self.config.max_loss_jump * reference:
                reason = f"more than {self.config.max_loss_jump:g} times the {reference:g} of the step before"
                found.setdefault(name, reason)
        for name in phase.bounded_losses.keys() & values.keys():
            bound = phase.bounded_losses[name]
            if abs(values[name]) > bound:
                found.setdefault(name, f"beyond the bound of {bound:g}")
        return found

    def accept(self, values: Mapping[str, float], phase: Phase) -> None:
        """Remember the losses of an accepted step."""
        self.references.update({name: values[name] for name in phase.reconstruction_losses & values.keys()})


class Guard:
    """Judges steps, counts refused ones, and knows which steps a roll-back leaves out.

    Args:
        config: the rules.
        start_nimg: images seen when the run began.
    """

    def __init__(self, config: GuardConfig, start_nimg: int):
        self.config = config
        self.monitor = LossMonitor(config, start_nimg)
        self.norms: dict[str, deque[float]] = {}
        self.refused: list[int] = []
        self.in_a_row = 0
        self.left_out: list[int] = []
        self.rolled_back = False
        self.last_trouble = ""
        self.overflowed = False

    def accepts(
        self,
        phase: Phase,
        step: int,
        nimg: int,
        by_rank: Sequence[Mapping[str, float]],
        loss_scale: float = 1.0,
    ) -> bool:
        """Whether the optimiser of a phase may step; the answer is the same on every rank.

        Args:
            by_rank: every rank's losses and gradient norms, by name.
            loss_scale: factor of the fp16 gradients before they were brought back. While it can still be lowered,
                a gradient that is not finite under finite losses is an overflow, which is ordinary.
        """
        self.overflowed = loss_scale > 1 and _only_gradients_overflow(by_rank)
        if self.overflowed:
            return False
        troubles = [
            f"rank {r}: {name} = {values[name]:g} ({reason})"
            for r, values in enumerate(by_rank)
            for name, reason in self._troubles(values, phase, step, nimg).items()
        ]
        if troubles:
            if rank() == 0:
                log.warning("step %d is left out; %s.", step, "; ".join(troubles))
            self.last_trouble = "; ".join(troubles)
            return False
        mean = {name: math.fsum(values[name] for values in by_rank) / len(by_rank) for name in by_rank[0]}
        self.monitor.accept(mean, phase)
        self._history(phase).append(by_rank[0][phase.gradient_norm])
        return True

    def _troubles(self, values: Mapping[str, float], phase: Phase, step: int, nimg: int) -> dict[str, str]:
        found = _not_finite(values) | self.monitor.unsafe(values, phase, nimg)
        history, norm = self._history(phase), values[phase.gradient_norm]
        if step >= SPIKES_FROM_STEP and history:
            usual = statistics.median(history)
            if norm > self.config.max_grad_norm_ratio * usual:
                found.setdefault(
                    phase.gradient_norm,
                    f"more than {self.config.max_grad_norm_ratio:g} times the median {usual:g} of the last steps",
                )
        return found

    def _history(self, phase: Phase) -> deque[float]:
        return self.norms.setdefault(phase.name, deque(maxlen=NORM_HISTORY))

    def count(self, step: int, accepted: bool) -> None:
        """Take note of a whole step."""
        if not accepted and self.overflowed:
            return
        self.in_a_row = 0 if accepted else self.in_a_row + 1
        if not accepted:
            self.refused.append(step)

    @property
    def gives_up(self) -> bool:
        """Whether so many steps in a row were refused that going on makes no sense."""
        return self.in_a_row >= self.config.max_skipped_steps

    def after_roll_back(self, step: int, refused: Sequence[int]) -> None:
        """Begin again at a step with the state of its checkpoint, leaving out the steps that were refused after it."""
        self.left_out = sorted({*self.left_out, *(s for s in refused if s >= step)})
        self.rolled_back = True

    def state_dict(self) -> dict[str, Any]:
        """History and counters for a checkpoint; JSON keeps them exactly."""
        return {
            "references": self.monitor.references,
            "norms": {name: list(history) for name, history in self.norms.items()},
            "refused": self.refused,
            "in_a_row": self.in_a_row,
            "left_out": self.left_out,
            "rolled_back": self.rolled_back,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.monitor.references = dict(state["references"])
        self.norms = {name: deque(history, maxlen=NORM_HISTORY) for name, history in state["norms"].items()}
        self.refused, self.left_out = list(state["refused"]), list(state["left_out"])
        self.in_a_row, self.rolled_back = state["in_a_row"], state["rolled_back"]


def _not_finite(values: Mapping[str, float]) -> dict[str, str]:
    return {name: "not finite" for name, value in values.items() if not math.isfinite(value)}


def _only_gradients_overflow(by_rank: Sequence[Mapping[str, float]]) -> bool:
    bad = {name for values in by_rank for name in _not_finite(values)}
    return bool(bad) and all(name.startswith("gradient_norm/") for name in bad)
