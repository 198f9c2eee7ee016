"""The states of a run, and which may follow which. Pure."""

from collections.abc import Mapping
from enum import StrEnum

from raytrain_plus.observe.events import END_STATES


class RunState(StrEnum):
    """What a run is at.

    The coordinator leads a run from `STARTING` to one of `ENDS`. The last five are what others see
    when the coordinator does not say it.
    """

    STARTING = "starting"
    """It waits for its first workers."""
    TRAINING = "training"
    """It trains, or forms a new generation."""
    STOPPING = "stopping"
    """It ends after the step in flight, on request."""
    FINISHED = "finished"
    """It has done its last step."""
    STOPPED = "stopped"
    """It has ended on request. It can be resumed."""
    FAILED = "failed"
    """It has ended because of an error. It can be resumed."""
    REPLACED = "replaced"
    """Another coordinator or driver has the run."""

    UNREACHABLE = "unreachable"
    """Its cluster or its coordinator cannot be reached."""
    NO_ANSWER = "no answer"
    """Its coordinator does not answer, as while Ray starts it again."""
    UNKNOWN = "unknown"
    """Its journal has no end."""
    LOST = "lost"
    """Its coordinator is gone for good, and no end is written."""
    INTERRUPTED = "interrupted"
    """The process that followed it has left it."""

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, or is led by another coordinator."""
        return not _NEXT[self]

    def followed_by(self, after: "RunState") -> "RunState":
        """Return the state after this one.

        Raises:
            RunStateError: it may not follow this one.
        """
        if after != self and after not in _NEXT[self]:
            raise RunStateError(f"a run that is {self} cannot be {after} next")
        return after


class RunStateError(RuntimeError):
    """A run was to get into a state that cannot follow the one that it is in."""


ENDS = frozenset(map(RunState, END_STATES))
"""How a run ends."""

_OVER = ENDS | {RunState.REPLACED}
_NEXT: Mapping[RunState, frozenset[RunState]] = {
    **dict.fromkeys(RunState, frozenset()),
    RunState.STARTING: _OVER | {RunState.TRAINING, RunState.STOPPING},
    RunState.TRAINING: _OVER | {RunState.STOPPING},
    RunState.STOPPING: _OVER,
}
