"""What is to be trusted no more, after corruption was found: whom, and the steps since when. Pure.

With `check_every` of 1 nothing wrong is ever committed: a state is compared before the update that
would use it. With a longer interval, or when a worker's arithmetic is found wrong by an audit, what
was committed since the last comparison that such a worker passed may be wrong, on all workers
alike: the run goes back to before that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from raytrain_plus.training.corruption import CorruptionError

Audit = Callable[[int, Sequence[range]], tuple[int, int]]
"""(step, ranges) -> the logical rank that is audited in a step, and the place of its auditor."""


@dataclass(frozen=True)
class Corruption:
    """What all workers of a group found before an update.

    Attributes:
        step: the committed steps then.
        accused: workers whose state is wrong.
        suspects: two workers of whom one has computed a wrong gradient.
        tie: states differ, and no majority says whose is wrong.
        why: the same in words.
    """

    step: int
    accused: tuple[str, ...]
    suspects: tuple[str, ...]
    tie: bool
    why: str


def named(error: CorruptionError, places: Sequence[str]) -> Corruption:
    """Return what was found, with workers' names for their places in the group."""
    return Corruption(
        step=error.step,
        accused=tuple(places[i] for i in error.accused),
        suspects=tuple(places[i] for i in error.suspects),
        tie=error.tie,
        why=error.why,
    )


@dataclass
class History:
    """Which groups have trained since when, and what was compared in them.

    Args:
        check_every, audit_every: steps between comparisons; 0 for never.
        audit: who is audited when.
    """

    check_every: int
    audit_every: int
    audit: Audit
    _groups: list[tuple[int, Mapping[str, range]]] = field(default_factory=list)

    def begin(self, step: int, group: Mapping[str, range]) -> None:
        """A group trains from a step on; groups before it that had begun later are undone."""
        self._groups = [one for one in self._groups if one[0] < step]
        self._groups.append((step, dict(group)))

    def trusted(self, found: Corruption, guilty: Sequence[str]) -> int:
        """Return the last committed step that can be trusted.

        Args:
            found: what was found.
            guilty: who of the suspects, or of all in a tie, failed to compute what is known.
        """
        step = found.step
        bounds = [step]
        if found.accused and self.check_every > 1:
            bounds.append(self._checked(step))
        if found.tie:
            bounds.append(self._checked(step))
        bounds += [self._audited(worker, step) for worker in guilty]
        return max(0, min(bounds))

    def _checked(self, step: int) -> int:
        """Return the step of the comparison before this one."""
        return step - self.check_every

    def _audited(self, worker: str, step: int) -> int:
        """Return the last step before this one whose gradient was right on a worker."""
        if not self.audit_every:
            return self._joined(worker)
        before = step - self.audit_every
        while before > 0:
            group = self._group_at(before)
            if worker not in group:
                return max(before, self._joined(worker))
            ranges = list(group.values())
            rank, auditor = self.audit(before, ranges)
            place = list(group).index(worker)
            if rank in ranges[place] or auditor == place:
                return before
            before -= self.audit_every
        return 0

    def _group_at(self, step: int) -> Mapping[str, range]:
        later = [group for start, group in self._groups if start <= step]
        return later[-1] if later else {}

    def _joined(self, worker: str) -> int:
        return next((start for start, group in self._groups if worker in group), 0)
