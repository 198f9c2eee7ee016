"""The weave: which aspects' advice runs at each join point, in which order, and what it costs."""

import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from raytrain_plus.algorithms.aspect import (
    EVERY_OTHER,
    JOIN_POINTS,
    Advice,
    Aspect,
    AspectError,
    Step,
)


@dataclass
class Cost:
    """What an aspect's advice cost one worker.

    Attributes:
        seconds: seconds in its advice, without what runs between the two halves.
        acted: how often its advice had something to do.
        idle: how often it had nothing to do.
    """

    seconds: float = 0.0
    acted: int = 0
    idle: int = 0


_OF_PARTS = ("batch", "forward", "loss", "backward")

_Entry = tuple[Cost, Callable[[Step], Advice]]


class Weave:
    """The advice of some aspects at each join point, found once.

    Args:
        aspects: in any order.

    Attributes:
        aspects: the aspects, outermost first.
        costs: by the aspect's name.
        observes: no aspect changes the run; also if there are none.
        advises_parts: an aspect may act while a logical rank's part is computed. If not, a step
            computes its parts as if there were no aspects.

    Raises:
        AspectError: two conflict, one is given twice, or their order has a cycle.
    """

    def __init__(self, aspects: Sequence[Aspect]) -> None:
        self.aspects = in_order(aspects)
        self.costs = {aspect.name: Cost() for aspect in self.aspects}
        self._advice: dict[str, list[_Entry]] = {
            point: [
                (self.costs[aspect.name], getattr(aspect, point))
                for aspect in self.aspects
                if advises(aspect, point)
            ]
            for point in JOIN_POINTS
        }
        self.observes = all(aspect.observes for aspect in self.aspects)
        self.advises_parts = any(
            not aspect.observes or any(advises(aspect, point) for point in _OF_PARTS)
            for aspect in self.aspects
        )
        self._nothing: AbstractContextManager[None] = nullcontext()

    def advises(self, point: str) -> bool:
        """Return whether any aspect gives advice at a join point."""
        return bool(self._advice[point])

    def spent(self) -> dict[str, dict[str, Any]]:
        """Return what each aspect's advice has cost since the last call."""
        found = {name: asdict(cost) for name, cost in self.costs.items()}
        for cost in self.costs.values():
            cost.seconds, cost.acted, cost.idle = 0.0, 0, 0
        return found

    def around(self, point: str, step: Step) -> AbstractContextManager[None]:
        """Return the context in which to run the join point."""
        advice = self._advice[point]
        return _Around(advice, step) if advice else self._nothing


class _Around:
    """Runs the first half of each advice on the way in, the second on the way out."""

    __slots__ = ("_advice", "_open", "_step")

    def __init__(self, advice: Sequence[_Entry], step: Step) -> None:
        self._advice = advice
        self._step = step
        self._open: list[tuple[Cost, Advice]] = []

    def __enter__(self) -> None:
        clock = time.perf_counter
        try:
            for cost, advise in self._advice:
                began = clock()
                advice = advise(self._step)
                if next(advice, advice) is advice:  # it returned before it yielded
                    cost.idle += 1
                else:
                    cost.acted += 1
                    self._open.append((cost, advice))
                cost.seconds += clock() - began
        except BaseException as error:
            self._unwind(error)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._unwind(error)
            return
        clock = time.perf_counter
        while self._open:
            cost, advice = self._open.pop()
            began = clock()
            try:
                more = next(advice, advice) is not advice
            except BaseException as failed:
                self._unwind(failed)
                raise
            cost.seconds += clock() - began
            if more:
                advice.close()
                twice = AspectError(f"advice {advice!r} yields twice; it must yield once")
                self._unwind(twice)
                raise twice

    def _unwind(self, error: BaseException) -> None:
        """Raise the error in each advice, innermost first; no advice can suppress it."""
        while self._open:
            _, advice = self._open.pop()
            try:
                advice.throw(error)
            except StopIteration:
                continue
            except BaseException as raised:
                if raised is not error:
                    raised.__context__ = error
                    self._unwind(raised)
                    raise
            advice.close()


def advises(aspect: Aspect, point: str) -> bool:
    """Return whether an aspect gives advice at a join point."""
    return getattr(type(aspect), point) is not getattr(Aspect, point)


def explain(aspects: Sequence[Aspect]) -> dict[str, list[str]]:
    """Return the aspects that advise at each join point, outermost first, without empty points."""
    ordered = in_order(aspects)
    found = {point: [a.name for a in ordered if advises(a, point)] for point in JOIN_POINTS}
    return {point: names for point, names in found.items() if names}


def in_order(aspects: Sequence[Aspect]) -> list[Aspect]:
    """Return aspects in nesting order, outermost first, whatever the order of the list.

    Raises:
        AspectError: two conflict, one is given twice, or their order has a cycle.
    """
    by_name = {aspect.name: aspect for aspect in aspects}
    if len(by_name) < len(aspects):
        names = [aspect.name for aspect in aspects]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise AspectError(f"algorithm {', '.join(twice)} is given twice: give it once")
    for name in sorted(by_name):
        for other in sorted(by_name[name].conflicts_with):
            if other in by_name:
                raise AspectError(f"{name} and {other} cannot be used together: drop one")
    order = _sorted(_edges(by_name))
    if len(order) < len(by_name):
        left = sorted(by_name.keys() - set(order))
        raise AspectError(f"the order of {', '.join(left)} contradicts itself")
    return [by_name[name] for name in order]


def _sorted(outside: Mapping[str, set[str]]) -> list[str]:
    """Return names so that each comes after those outside of it, otherwise alphabetically."""
    inside: dict[str, list[str]] = {name: [] for name in outside}
    for name, others in outside.items():
        for other in others:
            inside[other].append(name)
    waiting = {name: len(others) for name, others in outside.items()}
    free = sorted(name for name, n in waiting.items() if not n)
    ordered: list[str] = []
    while free:
        ordered.append(heapq.heappop(free))
        for other in inside[ordered[-1]]:
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(free, other)
    return ordered


def _edges(by_name: Mapping[str, Aspect]) -> dict[str, set[str]]:
    """Return for each aspect the aspects that must be outside of it."""
    outside: dict[str, set[str]] = {name: set() for name in by_name}
    for name, aspect in by_name.items():
        outside[name] |= {other for other in aspect.runs_after if other in by_name}
        for other in aspect.runs_before:
            if other in by_name:
                outside[other].add(name)
    for outer, inner in _general(by_name):
        if inner not in outside[outer]:  # a rule that names an aspect wins
            outside[inner].add(outer)
    return outside


def _general(by_name: Mapping[str, Aspect]) -> Iterator[tuple[str, str]]:
    """Yield (outer, inner) by the rules for every other aspect; equal rules cancel out."""
    first = {name for name, a in by_name.items() if EVERY_OTHER in a.runs_before}
    last = {name for name, a in by_name.items() if EVERY_OTHER in a.runs_after}
    for outer in sorted(by_name):
        for inner in sorted(by_name):
            outermost = outer in first and inner not in first
            innermost = inner in last and outer not in last
            if outer != inner and (outermost or innermost):
                yield outer, inner
