"""Which workers and steps can no longer be trusted after silent data corruption. Pure.

With `check_every` of 1 nothing wrong is ever committed: a state is compared before the update that
would use it. With a longer interval, or if an audit finds that a worker's arithmetic is wrong, all
steps since the last comparison that this worker passed may be wrong, on all workers alike. The run
then goes back to before them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain_plus.elastic.protocol.messages import Corruption
from raytrain_plus.training.corruption import CorruptionError

Audit = Callable[[int, Sequence[range]], tuple[int, int]]
"""(step, ranges) -> the logical rank that is audited in a step, and the place of its auditor."""


def named(error: CorruptionError, places: Sequence[str]) -> Corruption:
    """Return what was found, with names in place of places in the group."""
    return Corruption(
        step=error.step,
        accused=tuple(places[i] for i in error.accused),
        suspects=tuple(places[i] for i in error.suspects),
        tie=error.tie,
        why=error.why,
    )


@dataclass
class GroupHistory:
    """Which group has trained each step, and what was compared then.

    Args:
        check_every, audit_every: steps between comparisons; 0 for never.
        audit: says which worker is audited in a step.
    """

    check_every: int
    audit_every: int
    audit: Audit
    _groups: list[tuple[int, Mapping[str, range]]] = field(default_factory=list)

    def start_generation(self, step: int, group: Mapping[str, range]) -> None:
        """Note that a group trains from a step on; groups that started later are forgotten."""
        self._groups = [one for one in self._groups if one[0] < step]
        self._groups.append((step, dict(group)))

    def recall(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Note the groups of a journal, which does not say which worker computed what."""
        for event in events:
            if event["event"] == "generation":
                self.start_generation(event["step"], dict.fromkeys(event["members"], range(0)))

    def group_at(self, step: int) -> Mapping[str, range]:
        """Return the group that trained from a step on, with each worker's logical ranks; or {}."""
        later = [group for start, group in self._groups if start <= step]
        return later[-1] if later else {}

    def trusted(self, found: Corruption, guilty: Sequence[str]) -> int:
        """Return the last committed step that can be trusted.

        Args:
            found: what was found.
            guilty: the suspects, or of all in a tie, that failed the self-test.
        """
        step = found.step
        bounds = [step]
        compared = self._compared(step)
        if found.tie or (found.accused and compared < step - 1):
            bounds.append(compared)
        bounds += [self._audited(worker, step) for worker in guilty]
        return max(0, min(bounds))

    def _compared(self, step: int) -> int:
        """Return the step of the comparison of states before this one; audits compare them, too."""
        intervals = [every for every in (self.check_every, self.audit_every) if every]
        return max(((step - 1) // every * every for every in intervals), default=0)

    def _audited(self, worker: str, step: int) -> int:
        """Return the last step before this one whose gradient was right on a worker."""
        joined = next((start for start, group in self._groups if worker in group), 0)
        every = self.audit_every
        # Other comparisons may find it, so that this step need not be one of those audited.
        steps = range((step - 1) // every * every, joined, -every) if every else ()
        return next((before for before in steps if self._passed(worker, before)), joined)

    def _passed(self, worker: str, step: int) -> bool:
        """Say whether an audit has compared a worker with another; alone it proves nothing."""
        group = self.group_at(step)
        ranges = list(group.values())
        if worker not in group or len(group) == 1 or not ranges[-1]:
            return False
        rank, auditor = self.audit(step, ranges)
        return rank in group[worker] or auditor == list(group).index(worker)
