"""Tests here train in this process."""

from tests.trainer.conftest import narrow_patchgan  # noqa: F401  (a fixture)
