"""Which aspects may be on together, as independent choices.

Aspects that exclude one another, directly or through others, share one switch; its choices are
their allowed combinations. Whatever each switch is set to, no two that exclude each other are on,
and a sampler that draws a switch evenly prefers none of its combinations.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

Pairs = Collection[frozenset[str]]
"""Pairs of names that exclude each other."""


class Switch(NamedTuple):
    """One entry of a config that turns aspects on.

    Attributes:
        key: the aspect's name, or `A_or_B` for those that exclude one another.
        choices: what the entry may be -> the aspects that are then on: False and True, or `none`,
            `A`, `B` and so on, with `A+C` where A and C go together.
    """

    key: str
    choices: dict[bool | str, frozenset[str]]

    @property
    def off(self) -> bool | str:
        """The value that turns none on."""
        return next(iter(self.choices))

    def value_of(self, on: Iterable[str]) -> bool | str:
        """Return the value with which those of its aspects are on that are in `on`."""
        wanted = frozenset(on) & frozenset().union(*self.choices.values())
        return next(value for value, names in self.choices.items() if names == wanted)


def switches(names: Sequence[str], pairs: Pairs) -> tuple[Switch, ...]:
    """Return the switches of some aspects; each aspect belongs to one of them."""
    found = []
    for group in _connected(names, pairs):
        choices: dict[bool | str, frozenset[str]]
        if len(group) == 1:
            choices = {False: frozenset(), True: frozenset(group)}
        else:
            allowed = [
                chosen
                for size in range(1, len(group))
                for chosen in combinations(group, size)
                if not excluded(chosen, pairs)
            ]
            choices = {"none": frozenset(), **{"+".join(c): frozenset(c) for c in allowed}}
        found.append(Switch("_or_".join(group), choices))
    return tuple(found)


def excluded(names: Iterable[str], pairs: Pairs) -> list[tuple[str, str]]:
    """Return those pairs among some names that exclude each other, by alphabet."""
    return [pair for pair in combinations(sorted(set(names)), 2) if frozenset(pair) in pairs]


def _connected(names: Sequence[str], pairs: Pairs) -> list[list[str]]:
    """Return groups of names such that those that exclude each other are in one."""
    groups: list[list[str]] = []
    for name in names:
        near = [g for g in groups if any(frozenset((name, other)) in pairs for other in g)]
        groups = [g for g in groups if g not in near]
        groups.append([*(other for group in near for other in group), name])
    return sorted(groups, key=lambda group: min(names.index(name) for name in group))
