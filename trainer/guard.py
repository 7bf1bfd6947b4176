"""Before an optimiser step all ranks agree that the losses and the gradient are finite; otherwise nobody steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from common.distributed import all_gather_objects, rank
from common.errors import UserError

log = logging.getLogger(__name__)


class Guard:
    """Counts optimiser steps that were left out because something was not finite.

    Args:
        max_skipped_steps: the run stops after so many of them in a row.
    """

    def __init__(self, max_skipped_steps: int):
        self.max_skipped_steps = max_skipped_steps
        self.in_a_row = 0

    def accepts(self, step: int, agreed: Mapping[str, float], own: Mapping[str, float]) -> bool:
        """Whether the step may be taken; the answer is the same on every rank.

        Args:
            agreed: means over all ranks; any value that is not finite on one rank is not finite here.
            own: this rank's values of the same names, to tell where the trouble is.

        Raises: UserError after too many refused steps in a row.
        """
        if all(math.isfinite(value) for value in agreed.values()):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        culprits = {r: terms for r, terms in enumerate(all_gather_objects(_not_finite(own))) if terms}
        where = "; ".join(f"rank {r}: {', '.join(terms)}" for r, terms in culprits.items())
        if rank() == 0:
            log.warning("step %d is left out, not finite on %s.", step, where)
        if self.in_a_row >= self.max_skipped_steps:
            raise UserError(
                f"training stopped: {self.in_a_row} steps in a row were not finite (last: {where}). Look at the data "
                "of these steps, or go on in a new run.run_dir from this run's weights (training.init_from) with a "
                "lower learning rate."
            )
        return False

    def state_dict(self) -> dict[str, int]:
        """Counters for a checkpoint."""
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from `state_dict`."""
        self.in_a_row = state["in_a_row"]


def _not_finite(values: Mapping[str, float]) -> list[str]:
    return [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
