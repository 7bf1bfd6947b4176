"""Errors that a user can cause. Each message says where, what was found, what was expected, what to do."""

from __future__ import annotations


class UserError(Exception):
    """The user can put this right; commands print the message without a traceback and exit with code 2."""


class ConfigError(UserError):
    """One or more problems in a configuration, collected into one report."""


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, damaged or does not fit the model."""


class DataError(UserError):
    """A data set that cannot be read, or that has more bad samples than the run accepts."""


class ShapeError(UserError, ValueError):
    """A tensor whose shape does not fit the network or loss that it was given to."""


class NotBuiltError(UserError):
    """A published option that this version names but does not implement; it is never silently left out."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
