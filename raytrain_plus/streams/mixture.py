"""Mixtures: what a user configures, and one source of the rows of several streams."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raytrain_plus.streams.cache import Prefetcher
from raytrain_plus.streams.columns import DataError, check_setting, is_whole, listed
from raytrain_plus.streams.labels import check_same
from raytrain_plus.streams.mixture_order import DEFAULT_BLOCK, MixedOrder, block_counts
from raytrain_plus.streams.order import Ordering
from raytrain_plus.streams.source import Source, closed_on_error
from raytrain_plus.streams.stream import Stream, StreamFile, open_stream
from raytrain_plus.streams.vocabulary import check_one_tokenizer


@dataclass(frozen=True)
class Mixture:
    """Several streams to train on as one.

    Args:
        streams: name -> stream. All must have the same columns. The cache, the transform and
            `shuffle` of the first are used for all.
        weights: name -> share in every block. Default: the number of rows.
        changes: step -> the weights from that step on.
        block: number of consecutive samples of a lane in which the shares are exact.

    Raises:
        DataError: the weights do not fit the streams, or leave one without a place in a block.
    """

    streams: Mapping[str, Stream]
    weights: Mapping[str, float] | None = None
    changes: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    block: int = DEFAULT_BLOCK

    def __post_init__(self) -> None:
        given = self.streams
        is_streams = isinstance(given, Mapping) and all(
            isinstance(one, Stream) for one in given.values()
        )
        check_setting("streams", given, valid=is_streams, must="a mapping from name to Stream")
        if not given:
            raise DataError("a mixture needs at least one stream.")
        check_setting("block", self.block, valid=is_whole(self.block, 1), must="at least 1 sample")
        if self.weights is not None:
            self.shares(self.weights, "weights")
        for step, weights in self.changes.items():
            check_setting("a step of `changes`", step, valid=isinstance(step, int), must="a number")
            if step < 1:
                raise DataError(f"changes names step {step}, but steps to change at begin at 1.")
            self.shares(weights, f"changes at step {step}")

    def shares(self, weights: Mapping[str, float], what: str) -> list[float]:
        """Return weights in the order of the streams."""
        is_numbers = isinstance(weights, Mapping) and all(
            isinstance(one, int | float) for one in weights.values()
        )
        check_setting(what, weights, valid=is_numbers, must="a mapping from name to number")
        if set(weights) != set(self.streams):
            raise DataError(
                f"{what} names {listed(sorted(weights))}, but the streams are "
                f"{listed(sorted(self.streams))}."
            )
        shares = [float(weights[name]) for name in self.streams]
        block_counts(shares, self.block)  # refuses shares that cannot be kept
        return shares


class MixedSource(Source):
    """The rows of several streams; made by `open_mixture`."""

    def __init__(self, mixture: Mixture, sources: Mapping[str, Source], selection: Any) -> None:
        first = next(iter(sources.values()))
        files = [file for source in sources.values() for file in source.shards]
        remote = [file for file in files if isinstance(file, StreamFile)]
        ahead = Prefetcher(remote, remote[0].cache) if first.lookahead is not None else None
        with closed_on_error(ahead):  # this source closes it from here on
            super().__init__(
                files,
                (open_mixture, (mixture, selection)),
                window=sum(source.window or 1 for source in sources.values()),
                shuffle=first.shuffle,
                transform=first.transform,
                lookahead=ahead,
            )
        self._mixture, self._sources = mixture, sources

    def described(self) -> Mapping[str, Any]:
        """Return everything that a run's bits depend on."""
        mixture = self._mixture
        return {
            **super().described(),
            "mix": {
                "weights": self._weights(),
                "changes": {str(step): dict(w) for step, w in mixture.changes.items()},
                "block": mixture.block,
                "windows": {name: source.window for name, source in self._sources.items()},
            },
        }

    def order(self, lanes: int, seed: int, part_rows: int) -> Ordering:
        """Return the order in which a run reads these rows."""
        mixture = self._mixture
        orders = [source.lanes_order(lanes, seed) for source in self._sources.values()]
        for name, order in zip(self._sources, orders, strict=True):
            if not order.shortest_lane:
                raise DataError(f"stream {name!r} has fewer rows than logical ranks, {lanes}.")
        return MixedOrder(
            orders=orders,
            shares=mixture.shares(self._weights(), "weights"),
            changes={s: mixture.shares(w, "changes") for s, w in mixture.changes.items()},
            part_rows=part_rows,
            seed=seed,
            block=mixture.block,
        )

    def _weights(self) -> dict[str, float]:
        given = self._mixture.weights
        return {
            name: float(given[name] if given is not None else source.total_rows)
            for name, source in self._sources.items()
        }


def open_mixture(mixture: Mixture, selection: Any = None) -> MixedSource:
    """Open the streams of a mixture for reading.

    Raises:
        DataError: one cannot be opened, or they differ in their columns.
    """
    # The streams' own sources only describe the data: the source of the mixture reads it.
    with contextlib.ExitStack() as opened:
        sources: dict[str, Source] = {}
        for name, one in mixture.streams.items():
            sources[name] = open_stream(one, selection)
            opened.callback(sources[name].close)
        return _mixed(mixture, sources, selection)


def _mixed(mixture: Mixture, sources: Mapping[str, Source], selection: Any) -> MixedSource:
    first_name, first = next(iter(sources.items()))
    for name, source in sources.items():
        if source.columns != first.columns:
            raise DataError(
                f"the streams of a mixture must have the same columns, but {first_name!r} has "
                f"{_listed(first)} and {name!r} has {_listed(source)}: select columns that agree."
            )
    for name, source in sources.items():
        where = (f"stream {first_name!r}", f"stream {name!r}")
        check_same(first.labels, source.labels, *where)
        check_one_tokenizer(first.vocabularies, source.vocabularies, *where)
    mixed = MixedSource(mixture, sources, selection)
    mixed.labels = {k: v for source in sources.values() for k, v in source.labels.items()}
    for source in sources.values():
        mixed.vocabularies = {**source.vocabularies, **mixed.vocabularies}
        for name, skew in source.label_skew.items():
            mixed.label_skew = {**mixed.label_skew, name: max(skew, mixed.label_skew.get(name, 0))}
    return mixed


def _listed(source: Source) -> str:
    return ", ".join(f"{name} ({column})" for name, column in source.columns.items())
