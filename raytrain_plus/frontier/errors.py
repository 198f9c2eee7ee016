"""Errors of sweeps. This module imports little, since commands that run no sweep use it too."""


class SweepError(ValueError):
    """A sweep that cannot be run as it is defined, or cannot go on; the message says what to do."""


class FailedSweepError(RuntimeError):
    """A sweep that could not go on; what it has finished is kept."""
