"""Silent data corruption: memory that changes by itself, arithmetic that is wrong without an error.

Two checks find it.

- Replicas must be equal. Every few steps each worker computes a fingerprint of its state twice:
  after an update, and before the next one. Nothing may change the state between them, and all
  workers compare theirs. The same check follows an evaluation, before its results count. A worker
  that receives another's state also receives the fingerprint that this state should have, so that
  it loads no state that has changed since.
- Every few steps a second worker computes one logical rank's leaf as well.

All workers see the same facts before the update, and so make the same decision not to update.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from raytrain_plus.seeds import seed_for
from raytrain_plus.training.bits import BitSum, hash_of
from raytrain_plus.training.buffers import Buffers
from raytrain_plus.training.doubling import DoublingRound
from raytrain_plus.training.gather import gather
from raytrain_plus.training.state import Replica, Scalars
from raytrain_plus.training.wire import Wire


@dataclass(frozen=True)
class Facts:
    """What one worker tells the others before an update.

    Attributes:
        state: the fingerprint of its state; 0 if the step is not checked.
        changed: its state is not the same as after the last update.
        leaf: the sum of bits of the audited leaf, if the worker owns that logical rank.
        second: the same of the leaf that it has computed as the auditor.
    """

    state: int = 0
    changed: bool = False
    leaf: int | None = None
    second: int | None = None


@dataclass(frozen=True)
class Finding:
    """What the facts of all workers say together.

    Attributes:
        accused: places in the group of the workers whose state is wrong.
        suspects: places of two workers, one of which has computed a wrong leaf.
        tie: states differ, and there is no majority that says which is wrong.
        why: the same in words.
    """

    accused: tuple[int, ...]
    suspects: tuple[int, ...]
    tie: bool
    why: str


class CorruptionError(RuntimeError):
    """A replica's memory or arithmetic is wrong; all workers raise it alike, before the update.

    Attributes:
        step: the committed steps, to which the state belongs.
        accused, suspects, tie, why: those of the `Finding`. The state of every worker that is
            neither accused nor part of a tie is whole. Which of two suspects is wrong must be
            found by a computation whose result is known.
    """

    def __init__(self, step: int, finding: Finding) -> None:
        super().__init__(f"after step {step}: {finding.why}")
        self.step = step
        self.accused = finding.accused
        self.suspects = finding.suspects
        self.tie = finding.tie
        self.why = finding.why


# A flipped bit hits one worker. What hits all of them is the same code.
_OF_ALL = (
    ", of all at once: a thread or a callback of the task may change weights, which only the "
    "optimizer may do"
)


def judge(facts: Sequence[Facts]) -> Finding | None:
    """Say what is wrong, from the facts of all workers in order; None if nothing is."""
    changed = [place for place, fact in enumerate(facts) if fact.changed]
    others = [place for place in range(len(facts)) if place not in changed]
    states = Counter(facts[place].state for place in others)
    most, votes = states.most_common(1)[0] if others else (0, 0)
    tie = len(states) > 1 and 2 * votes <= len(others)
    differing = [] if tie else [place for place in others if facts[place].state != most]
    owners = {place: f.leaf for place, f in enumerate(facts) if f.leaf is not None}
    auditors = {place: f.second for place, f in enumerate(facts) if f.second is not None}
    suspects: tuple[int, ...] = ()
    if owners and len({*owners.values(), *auditors.values()}) > 1:
        suspects = tuple(sorted({*owners, *auditors}))
    moved = f"the memory of the workers at places {changed} changed between two steps"
    if not others:
        moved += _OF_ALL
    said = [
        (changed, moved),
        (differing, f"the state of the workers at places {differing} differs from the others'"),
        (tie, f"the states of the workers at places {others} differ, and none has a majority"),
        (suspects, f"the workers at places {list(suspects)} got different gradients for one part"),
    ]
    why = "; ".join(words for holds, words in said if holds)
    return Finding((*sorted([*changed, *differing]),), suspects, tie, why) if why else None


def audit_of(seed: int, step: int, ranges: Sequence[range]) -> tuple[int, int]:
    """Draw which logical rank is audited in a step, and the place of the worker that does it."""
    auditor, rank = divmod(seed_for(seed, "audit", step), ranges[-1].stop)
    owner = next(place for place, ranks in enumerate(ranges) if rank in ranks)
    others = [place for place in range(len(ranges)) if place != owner] or [owner]
    return rank, others[auditor % len(others)]


class Guard:
    """Watches the steps of one replica.

    Args:
        replica: whose state is watched.
        buffers: the model's.
        check_every: compare states every so many committed steps; 0: only with an audit.
        audit_every: compute a leaf twice, and compare states, every so many steps; 0: never.
        reproduce: called when the state has changed by itself, with whether that was within a
            step. It raises an error if the task's own code has changed the state. Default: the
            memory is taken to be wrong.

    Raises:
        ValueError: one of the two is negative.
    """

    def __init__(
        self,
        replica: Replica,
        buffers: Buffers,
        check_every: int,
        audit_every: int,
        reproduce: Callable[..., None] = lambda *, in_step: None,  # noqa: ARG005
    ) -> None:
        for name, every in (("check_every", check_every), ("audit_every", audit_every)):
            if every < 0:
                raise ValueError(f"{name} is {every}; give a number of steps, or 0 for never")
        self._replica = replica
        self._fingerprint = Fingerprint(replica, buffers)
        self._check_every = check_every
        self._audit_every = audit_every
        self._noted = (-1, 0, 0)
        self._alike = True
        self._reproduce = reproduce

    def begin_generation(
        self,
        ranges: Sequence[range],
        wire: Wire,
        rounds: Sequence[DoublingRound],
        *,
        alike: bool = True,
    ) -> None:
        """Prepare for a generation; the state is that from which it starts.

        Args:
            ranges: which logical ranks each worker computes.
            wire: to the other workers.
            rounds: in which all tell each other what they have found.
            alike: all workers compute the same bits. If not, each checks its own memory only.
        """
        self._ranges = ranges
        self._wire = wire
        self._rounds = rounds
        self._alike = alike
        if self.noted is None:
            self.note()

    def note(self, *, always: bool = False) -> None:
        """Note what the state is, after an update.

        Args:
            always: also if the step that begins is not checked.
        """
        if always or self.watches(self._replica.step):
            self.expect(self._fingerprint.compute())

    @property
    def noted(self) -> int | None:
        """The fingerprint that the present state should have; None if it was not noted."""
        step, loads, fingerprint = self._noted
        present = (step, loads) == (self._replica.step, self._replica.loads)
        return fingerprint if present else None

    def expect(self, fingerprint: int) -> None:
        """Note the fingerprint that the present state should have."""
        self._noted = (self._replica.step, self._replica.loads, fingerprint)

    def audit_of(self, step: int) -> tuple[int, int] | None:
        """Return which logical rank is audited in a step, and by the worker at which place.

        A step is given by the steps committed before it. None: there is no audit in it.
        """
        if not self._alike or not _due(step, self._audit_every):
            return None
        return audit_of(self._replica.training.seed, step, self._ranges)

    def watches(self, step: int) -> bool:
        """Say whether anything is compared in a step."""
        return _due(step, self._check_every) or _due(step, self._audit_every)

    def compare(self, leaf: int | None, second: int | None) -> Finding | None:
        """Compare, before an update, with all workers.

        Args:
            leaf: the sum of bits of the audited leaf, if it is ours.
            second: the same of what we have computed as the auditor.

        Raises:
            Exception: whatever the wire raises.
        """
        state, changed = 0, False
        # With an audit, too: a wrong state gives a wrong leaf by right arithmetic.
        if self.watches(self._replica.step):
            state, changed = self._state(in_step=True)
        return judge(self._tell(Facts(state, changed, leaf, second)))

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Check with all workers that what runs inside this context has not changed the state.

        Raises:
            CorruptionError: it has, or the states differed before.
            Exception: whatever the wire raises.
        """
        if not (self._check_every or self._audit_every):
            yield
            return
        if self.noted is None:
            self.note(always=True)
        yield
        finding = judge(self._tell(Facts(*self._state(in_step=False))))
        if finding is not None:
            raise CorruptionError(self._replica.step, finding)

    def _tell(self, facts: Facts) -> list[Facts]:
        """Give the others our facts; return those of all, in order."""
        own = torch.tensor(_packed(facts), dtype=torch.int64)
        numbers, index = len(own), self._wire.index
        vector = torch.zeros(numbers * self._wire.size, dtype=torch.int64, device=self._wire.device)
        vector[numbers * index : numbers * (index + 1)].copy_(own)
        cuts = range(0, len(vector) + 1, numbers)
        gather(self._wire, self._rounds, vector, cuts)
        return [_unpacked(one) for one in vector.view(-1, numbers).tolist()]

    def _state(self, *, in_step: bool) -> tuple[int, bool]:
        """Return the fingerprint to compare, and whether it differs from the one noted."""
        state = self._fingerprint.compute(in_step=in_step)
        changed = self.noted is not None and state != self.noted
        if changed:
            self._reproduce(in_step=in_step)
        return state if self._alike else 0, changed


class Fingerprint:
    """A replica's whole state as one number: tensors, optimizer's and aspects' scalars, counts."""

    def __init__(self, replica: Replica, buffers: Buffers) -> None:
        self._replica = replica
        self._buffers = buffers
        self._parameters = dict(replica.model.named_parameters())
        self._sums: dict[bool, tuple[list[tuple[str, int]], BitSum]] = {}
        self._structure: tuple[Any, int] = (None, 0)

    def compute(self, *, in_step: bool = False) -> int:
        """Return the fingerprint, at least 0 and below 2**64.

        Args:
            in_step: parts were computed since the last update, so that the state's buffers are
                those of the snapshot. Default: between two steps.
        """
        buffers = self._buffers.start if in_step else self._buffers.values()
        kept, scalars = self._replica.kept()
        named = kept | {f"buffers/{i}": buffer for i, buffer in enumerate(buffers)}
        named |= {f"model/{n}": p for n, p in self._parameters.items()}
        memory = [(name, tensor.data_ptr()) for name, tensor in named.items()]
        known = self._sums.get(in_step)
        if known is None or known[0] != memory:
            known = self._sums[in_step] = memory, BitSum(named)
        return known[1].compute() ^ self._hash_of(scalars)

    def _hash_of(self, scalars: Scalars) -> int:
        """Return a hash of all scalars. A structure is hashed once."""
        structure = scalars["optimizer"]["state"]
        if structure is not self._structure[0]:
            self._structure = structure, hash_of(_text(structure))
        rest = scalars["optimizer"] | {"state": self._structure[1]}
        return hash_of(_text(scalars | {"optimizer": rest}))


def _text(scalars: Any) -> str:
    return json.dumps(scalars, sort_keys=True, default=str)


def _packed(facts: Facts) -> list[int]:
    """Return the facts as six numbers of 64 bits with a sign."""
    numbers = [facts.changed, facts.state]
    for number in (facts.leaf, facts.second):
        numbers += [number is not None, number or 0]
    return [int(n) - (1 << 64) if n >> 63 else int(n) for n in numbers]


def _unpacked(numbers: list[int]) -> Facts:
    changed, state, owns, leaf, audits, second = (n & (1 << 64) - 1 for n in numbers)
    return Facts(state, bool(changed), leaf if owns else None, second if audits else None)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
