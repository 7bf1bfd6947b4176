"""Tests here train in this process."""

from tests.trainer.conftest import keep_signal_handlers  # noqa: F401  (a fixture)
