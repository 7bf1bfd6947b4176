"""Warm-up of the discriminators: each is held back until another loss has settled at a low value."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from losses.schedule import Moment

WINDOW = 100  # updates that are looked at together
LOW = 0.1  # their mean must be below this ...
CALM_IN_A_ROW = 10  # ... and so many judgements in a row must find no change

# What waits together with a discriminator.
HELD_BACK = {
    "stylegan_t": frozenset({"stylegan_t", "matching_aware"}),
    "patchgan": frozenset({"patchgan", "feature_matching"}),
}


class SettlingLoss:
    """Tells from a loss's values, one per step, when it has settled.

    A full window whose mean is low is judged: it is calm if the means of its halves hardly differ. The older half is
    dropped then, so the next judgement comes half a window later.

    Args:
        largest_change: the difference between the halves' means that still counts as calm, exclusive.
    """

    def __init__(self, largest_change: float):
        self.largest_change = largest_change
        self.window: deque[float] = deque(maxlen=WINDOW)
        self.calm = 0

    def update(self, value: float) -> bool:
        """Look at the value of one more step; whether enough judgements in a row were calm."""
        self.window.append(value)
        if len(self.window) == WINDOW and sum(self.window) / WINDOW < LOW:
            values, half = list(self.window), WINDOW // 2
            early, late = sum(values[:half]) / half, sum(values[half:]) / half
            self.calm = self.calm + 1 if abs(late - early) < self.largest_change else 0
            self.window = deque(values[half:], maxlen=WINDOW)
        return self.calm >= CALM_IN_A_ROW

    def state_dict(self) -> dict[str, Any]:
        return {"window": list(self.window), "calm": self.calm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.window = deque(state["window"], maxlen=WINDOW)
        self.calm = state["calm"]


class DiscriminatorWarmup:
    """Decides after each generator step which discriminators take part from now on.

    StyleGAN-T waits for the pixel loss, PatchGAN for the tokenizer's StyleGAN-T loss. When PatchGAN has waited and
    starts, only the second half of the decoder may be trained on, as in the published PatchGAN stage.

    Args:
        stylegan_t, patchgan: which of them is held back at the start of training.
    """

    def __init__(self, stylegan_t: bool, patchgan: bool):
        self._asked = {"stylegan_t": stylegan_t, "patchgan": patchgan}
        self._held = {name for name, asked in self._asked.items() if asked}
        self._awaited = {"stylegan_t": SettlingLoss(largest_change=0.01), "patchgan": SettlingLoss(largest_change=0.05)}

    @property
    def waiting(self) -> frozenset[str]:
        """Terms of the objective that do not count yet."""
        return frozenset().union(*(HELD_BACK[name] for name in self._held))

    def moment(self, nimg: int) -> Moment:
        """The point in training after `nimg` images, for the objective."""
        return Moment(nimg, self.waiting)

    @property
    def freezes_first_half(self) -> bool:
        """Whether PatchGAN has started after a warm-up, so that only the second half of the decoder is trained."""
        return self._asked["patchgan"] and "patchgan" not in self._held

    def update(self, pixel_loss: float | None, adversarial_loss: float | None) -> frozenset[str]:
        """Look at one more generator step. The values are those of all ranks together, so that all decide alike.

        Args:
            pixel_loss: the L1 loss, without it the L2 loss; None in a step in which neither counts.
            adversarial_loss: the tokenizer's StyleGAN-T loss; None in a step in which it does not count.
        Returns: the discriminators that take part from the next step on, and did not before.
        """
        values = {"stylegan_t": pixel_loss, "patchgan": adversarial_loss}
        started = {name for name in self._held if values[name] is not None and self._awaited[name].update(values[name])}
        self._held -= started
        return frozenset(started)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"held": sorted(self._held), **{name: loss.state_dict() for name, loss in self._awaited.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._held = set(state["held"])
        for name, loss in self._awaited.items():
            loss.load_state_dict(state[name])
