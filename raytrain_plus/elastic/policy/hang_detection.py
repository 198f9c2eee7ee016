"""Detects a worker that lives but makes no progress. Pure: the caller passes the time."""

import itertools
import statistics
from collections import deque
from collections.abc import Mapping, Sequence

from raytrain_plus.elastic.protocol.messages import ElasticConfig, WorkerStatus

_LEAST = 5.0  # seconds; a machine that is busy for a moment is not a hang
_TIMES = 4.0  # times the median step
_REMEMBERED = 101  # steps
_ANSWER = 1.0  # seconds; a worker that lives answers in milliseconds
_FEW = 2  # members that may be silent at once, or a hundredth of the group
_BY_NODE, _BY_ALL = 3, 6  # times that many were silent, after which some are blamed


class Watch:
    """Says when a group has made no progress for too long.

    Args:
        config: the deadlines.
    """

    def __init__(self, config: ElasticConfig) -> None:
        self._config = config
        self._steps: deque[float] = deque(maxlen=_REMEMBERED)
        self._warm = False
        self._begun = self._last = 0.0
        self._asked = False
        self._heard = False
        self._slowest_first = 0.0

    def start_generation(self, now: float, *, warm: bool) -> None:
        """Start a generation.

        Args:
            now: monotonic seconds.
            warm: all its members have run steps before, so that no first step is slow.
        """
        self._begun = self._last = now
        self._asked = False
        self._warm = warm

    def note_progress(self, now: float, commits: Sequence[float] = ()) -> None:
        """Note progress of the group; `commits` are the times at which successive steps ended."""
        self._last = now
        self._asked = False
        self._heard = self._heard or bool(commits)
        if commits and not self._warm:
            self._slowest_first = max(self._slowest_first, now - self._begun)
            self._warm = True
        self._steps.extend(b - a for a, b in itertools.pairwise(commits))

    @property
    def deadline(self) -> float:
        """Seconds without progress after which a worker counts as hung."""
        if not self._warm and not self._slowest_first:
            return max(self._config.first_step_deadline, self._config.hang_deadline or 0.0)
        if self._config.hang_deadline is None and not self._heard:
            return self._config.first_step_deadline  # the coordinator was just restarted
        usual = statistics.median(self._steps) if self._steps else 0.0
        deadline = self._config.hang_deadline or max(_LEAST, _TIMES * usual)
        if self._warm:
            return deadline
        return max(deadline, min(_TIMES * self._slowest_first, self._config.first_step_deadline))

    @property
    def answer_seconds(self) -> float:
        """How long to wait for a worker that is asked what it is doing."""
        return min(_ANSWER, self.deadline / 2)

    def overdue(self, now: float) -> bool:
        """Say whether it is time to ask all workers what they are doing.

        The first time is early enough to judge workers that do not answer at the deadline. The
        second time is the deadline itself, to judge those that answer.
        """
        return now - self._last > self.deadline - (0.0 if self._asked else self.answer_seconds)

    def asked(self) -> bool:
        """Note that all workers were asked; returns whether this was at the deadline."""
        late, self._asked = self._asked, True
        return late


class Silence:
    """Decides which of the members that do not answer are to blame.

    Silence is not guilt. If many are silent at once, the cause is rather this process or the
    network: no member is blamed then, and they are asked again when the next deadline has passed.
    If that does not change, the members of nodes on which no member answers are blamed, and in the
    end all that are silent.
    """

    def __init__(self) -> None:
        self._times = 0

    def blamed(
        self, silent: Sequence[str], node_of: Mapping[str, str], *, at_deadline: bool = True
    ) -> list[str]:
        """Return the members to blame.

        Args:
            silent: the members that have left two questions unanswered.
            node_of: the node of each member.
            at_deadline: many that are silent before the deadline are not judged yet.
        """
        if len(silent) <= max(_FEW, len(node_of) // 100):
            self._times = 0
            return list(silent)
        if not at_deadline:
            return []
        self._times += 1
        if self._times >= _BY_ALL:
            return list(silent)
        if self._times < _BY_NODE:
            return []
        answering = {node for worker, node in node_of.items() if worker not in set(silent)}
        return [worker for worker in silent if node_of[worker] not in answering]

    def clear(self) -> None:
        """Note that the group makes progress."""
        self._times = 0


def culprits(statuses: Mapping[str, WorkerStatus | None], deadline: float) -> dict[str, str]:
    """Find the workers that keep a group waiting.

    A worker that does not answer is stopped, or never releases its interpreter. A worker that has
    been busy with its own work for too long hangs, even if it answers. Workers that wait in an
    exchange are innocent.

    Args:
        statuses: each worker's answer, None for no answer.
        deadline: seconds.

    Returns:
        The culprits, with what is known of them.
    """
    found = {}
    for worker, status in statuses.items():
        if status is None:
            found[worker] = "it did not answer"
        elif not status.waiting and status.age > deadline:
            memory = f" ({status.memory})" if status.memory else ""
            found[worker] = f"it was in {status.phase} for {status.age:.1f} s{memory}"
    return found


def all_wait(statuses: Mapping[str, WorkerStatus | None], deadline: float) -> bool:
    """Say whether all answer and have waited for others for too long: a message was lost."""
    return all(s is not None and s.waiting and s.age > deadline for s in statuses.values())
