"""Factorial designs: which aspects to turn on together to estimate their effects.

Two-level designs after Box and Hunter 1961 ("The 2^(k-p) fractional factorial designs"). A run of
a design is a number r and an aspect is a column v, both read as bits. The aspect is on if r and v
have an odd number of 1 bits in common. A design has resolution R if no fewer than R columns have
the XOR zero. Columns are chosen one after another, each the smallest that keeps the resolution, as
in a lexicographic code.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

MOST_RUNS = 4096

Refusal = Callable[[frozenset[str]], str | None]
"""Returns why aspects may not be on together, None if they may: `RecipeSpace.refusal`."""


class DesignError(ValueError):
    """A design that cannot be made."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """Which aspects are on in each run.

    Attributes:
        aspects: the aspects of the design.
        resolution: 3: effects of single aspects are confounded with those of pairs; 4: only
            pairs are confounded with each other; 5: pairs are clear too, if no three aspects
            interact. None: a full design, nothing is confounded.
        runs: the aspects that are on in each run; the first run has none.
        dropped: the runs that are not allowed, each with the reason. Without them the columns are
            not balanced.
    """

    aspects: tuple[str, ...]
    resolution: int | None
    runs: tuple[frozenset[str], ...]
    dropped: tuple[tuple[frozenset[str], str], ...] = ()

    def __str__(self) -> str:
        kind = "full" if self.resolution is None else f"of resolution {self.resolution}"
        text = f"{len(self.runs)} runs over {len(self.aspects)} aspects, {kind}"
        if self.dropped:
            reasons = sorted({reason for _, reason in self.dropped})
            text += f"; {len(self.dropped)} dropped, as {', '.join(reasons)}"
        return text


def factorial(
    aspects: Sequence[str], resolution: int | None = None, refusal: Refusal | None = None
) -> Design:
    """Make a design.

    Args:
        aspects: their names.
        resolution: the least resolution, 3 or more. Default None, a full design.
        refusal: returns why aspects may not be on together. Default: all may.

    Raises:
        DesignError: there is no aspect, one is given twice, the resolution is below 3, or there
            would be more than 4096 runs.
    """
    _check(aspects, resolution)
    bits, columns = _columns(len(aspects), resolution)
    if 2**bits > MOST_RUNS:
        raise DesignError(
            f"{len(aspects)} aspects need {2**bits} runs; at most {MOST_RUNS} are made: leave "
            "aspects out, or take a lower resolution"
        )
    runs, dropped = [], []
    for run in range(2**bits):
        on = frozenset(
            name
            for name, column in zip(aspects, columns, strict=True)
            if (run & column).bit_count() % 2
        )
        reason = refusal(on) if refusal else None
        if reason is None:
            runs.append(on)
        else:
            dropped.append((on, reason))
    return Design(
        aspects=tuple(aspects),
        resolution=None if bits == len(aspects) else resolution,
        runs=tuple(runs),
        dropped=tuple(dropped),
    )


def _check(aspects: Sequence[str], resolution: int | None) -> None:
    if not aspects:
        raise DesignError("a design needs at least one aspect")
    if len(set(aspects)) < len(aspects):
        raise DesignError(f"among {', '.join(aspects)} one is given twice: give it once")
    if resolution is not None and resolution < 3:
        raise DesignError(
            f"resolution {resolution} would mix up aspects with each other: take 3, 4 or 5, or "
            "none for a full design"
        )


def _columns(count: int, resolution: int | None) -> tuple[int, list[int]]:
    """Return the fewest bits that a design needs, and its columns."""
    full = [1 << place for place in range(count)]
    if resolution is None:
        return count, full
    columns: list[int] = []
    candidate = 0
    # XORs of fewer than R - 1 columns: a new column equal to one would lower the resolution.
    taken: set[int] = {0}
    while len(columns) < count:
        candidate += 1
        if candidate not in taken:
            columns.append(candidate)
            taken = set(_sums(columns, resolution - 2))
    bits = max(columns).bit_length()
    return (bits, columns) if bits < count else (count, full)


def _sums(columns: Sequence[int], most: int) -> Iterable[int]:
    """Yield the XORs of up to some number of columns."""
    for size in range(min(most, len(columns)) + 1):
        for chosen in combinations(columns, size):
            total = 0
            for column in chosen:
                total ^= column
            yield total
