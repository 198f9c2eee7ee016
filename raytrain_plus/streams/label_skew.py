"""Label skew: how much the labels of consecutive rows differ from an independent draw of all.

A stream is cut into stretches, one for each logical rank, and rows are mixed within a window of
files only. So rows that are sorted by label stay together, and each logical rank sees few labels.
This trains a worse model, above all with batch normalization.

The skew of a column is 0 if each stretch has the labels of an independent draw, and 1 if each has a
single label. It is the mean total variation distance between the labels of a stretch and those of
all rows, minus its expected value for an independent draw of the same size, divided by the largest
possible value of this difference.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raytrain_plus.streams.files import DataFile
from raytrain_plus.streams.source import Source

STRETCHES = 8
"""Into how many stretches a stream is cut to measure it."""

WORTH_A_WARNING = 0.3
_MOST_LABELS = 1000
_ROWS_PER_LABEL = 4  # with fewer rows of each value, a column does not hold labels
_MOST_BLOCKS = 512
_LONGEST_LABEL = 200  # bytes of text
_SAMPLED_ROWS = 256  # of each lane
_SAMPLED_BYTES = 256 << 20  # larger folders are not sampled


def skew(stretches: Sequence[Mapping[Any, int]]) -> float:
    """Return the label skew of stretches of rows, from 0 to 1.

    Args:
        stretches: for each stretch, label -> number of rows.
    """
    total: Counter[Any] = Counter()
    for stretch in stretches:
        total.update(stretch)
    rows = sum(total.values())
    shares = {label: count / rows for label, count in total.items()}
    most = 1 - sum(share**2 for share in shares.values())
    found = expected = 0.0
    for stretch in stretches:
        size = sum(stretch.values())
        if not size:
            continue
        distance = sum(abs(stretch.get(c, 0) / size - p) for c, p in shares.items()) / 2
        drawn = sum(_mean_deviation(size, p) for p in shares.values()) / (2 * size)
        found += distance * size / rows
        expected += drawn * size / rows
    if most <= expected:
        return 0.0
    return min(1.0, max(0.0, (found - expected) / (most - expected)))


def _mean_deviation(n: int, p: float) -> float:
    """Return the mean absolute deviation of a binomial distribution (De Moivre, 1730)."""
    if p >= 1:
        return 0.0
    k = math.floor(n * p) + 1
    log_chance = (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
    )
    return 2 * k * (1 - p) * math.exp(log_chance)


class SkewMeter:
    """Measures the label skew of rows as they are written, in bounded memory.

    A column of few different whole numbers, booleans or texts is taken for labels.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Blocks] | None = None

    def see(self, table: pa.Table) -> None:
        """Count the next rows."""
        if self._columns is None:
            self._columns = {
                field.name: _Blocks() for field in table.schema if _may_be_labels(field.type)
            }
        for name, blocks in list(self._columns.items()):
            column = table.column(name)
            is_prose = (
                pa.types.is_string(column.type)
                and (pc.max(pc.binary_length(column)).as_py() or 0) > _LONGEST_LABEL
            )
            if is_prose:
                del self._columns[name]
                continue
            for chunk in column.chunks:
                blocks.add(chunk)
            if len(blocks.labels) > _MOST_LABELS:
                del self._columns[name]

    def measured(self) -> dict[str, float]:
        """Return the skew of each column of labels."""
        found = {}
        for name, blocks in (self._columns or {}).items():
            if len(blocks.labels) > 1 and blocks.rows >= _ROWS_PER_LABEL * len(blocks.labels):
                found[name] = round(skew(blocks.stretches(STRETCHES)), 4)
        return found


class _Blocks:
    """How often each label occurs in consecutive blocks of rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.labels: set[Any] = set()
        self._each = 1
        self._counts: list[Counter[Any]] = []

    def add(self, values: pa.Array) -> None:
        done = 0
        while done < len(values) and len(self.labels) <= _MOST_LABELS:
            room = self._each - self.rows % self._each
            if room == self._each:
                self._counts.append(Counter())
            some = values[done : done + room]
            counted = some.value_counts()
            found = dict(
                zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)
            )
            self._counts[-1].update(found)
            self.labels.update(found)
            self.rows += len(some)
            done += len(some)
            if len(self._counts) > _MOST_BLOCKS and self.rows % (2 * self._each) == 0:
                pairs = zip(self._counts[::2], self._counts[1::2], strict=True)
                self._counts = [one + other for one, other in pairs]
                self._each *= 2

    def stretches(self, count: int) -> list[Counter[Any]]:
        """Return the counts of `count` stretches of about the same size."""
        found: list[Counter[Any]] = [Counter() for _ in range(count)]
        for number, counts in enumerate(self._counts):
            middle = (number + 0.5) * self._each
            found[min(count - 1, int(middle * count / self.rows))].update(counts)
        return [counts for counts in found if counts]


def skew_of(source: Source, column: str) -> Mapping[str, float]:
    """Return the label skew of a source's column, if it is cheap to find.

    A stream's manifest contains it. Of a small folder on this machine, the first rows of each lane
    are read. A table or a single file is mixed by rows, so its order does not matter.

    Args:
        source: the source; the caller releases it afterwards.
        column: the column of labels.
    """
    if source.window is None or not source.shuffle or source.label_skew:
        return source.label_skew if source.window is not None else {}
    found = source.columns.get(column)
    files = [shard for shard in source.shards if isinstance(shard, DataFile)]
    is_small = len(files) == len(source.shards) and sum(f.stat.size for f in files) < _SAMPLED_BYTES
    is_label = found is not None and not found.shape and found.kind != "nested"
    if not is_small or found is None or not is_label or source.total_rows < _SAMPLED_ROWS:
        return {}
    order = source.lanes_order(STRETCHES, 0)
    stretches: list[Counter[Any]] = []
    for lane in range(STRETCHES):
        places, rows = order.locate(0, lane, 0, min(_SAMPLED_ROWS, order.shortest_lane))
        if found.kind == "tensor":
            values = np.empty(len(rows), found.dtype)
            source.gather(places, rows, column, values)
            stretches.append(Counter(values.tolist()))
        else:
            stretches.append(Counter(source.gather_list(places, rows, column)))
    seen = len({label for stretch in stretches for label in stretch})
    enough = sum(sum(stretch.values()) for stretch in stretches) >= _ROWS_PER_LABEL * seen
    return {column: round(skew(stretches), 4)} if seen > 1 and enough else {}


def told(skews: Mapping[str, float], columns: Iterable[str] | None = None) -> str | None:
    """Return a warning about columns by which the rows are sorted; None without any."""
    names = skews.keys() if columns is None else columns
    found = [name for name in names if skews.get(name, 0) > WORTH_A_WARNING]
    if not found:
        return None
    listing = ", ".join(f"{name!r} (label skew {skews[name]:.2f} of 1)" for name in found)
    return (
        f"the rows are sorted by {listing}: each logical rank would see few of its values at a "
        "time, and rows are mixed within a window of files only. If these are labels, the model "
        "gets worse. Write the stream with `raytrain-plus data write SOURCE PLACE --order mixed`"
    )


def _may_be_labels(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_boolean(kind) or types.is_string(kind))
