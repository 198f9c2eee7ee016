"""How often files are fetched: counted at an S3 server, with each worker on its own node.

Run as `python -m benchmarks.downloads [--quick] [--json]`. It starts the tests' S3 server and a
proxy that counts.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import report
from benchmarks.report import Aim, Row
from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign
from raytrain_plus.elastic.protocol.messages import Assignment
from raytrain_plus.streams.loader import Loader, steps_per_epoch
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.s3_server import Proxy, Server, proxy_of, s3_server

_LANES, _PART, _WINDOW = 8, 8, 2
_ROWS, _FILES = 25_600, 100


class Fleet:
    """Nodes that read the lanes of a plan, each with its own cache.

    Args:
        server, proxy: the server that has the data, and the proxy that counts.
        bucket: the bucket with the data.
        folder: the folder for the caches.
    """

    def __init__(self, server: Server, proxy: Proxy, bucket: str, folder: Path) -> None:
        self._server, self._proxy, self._bucket = server, proxy, bucket
        self._folder = folder
        self.sources: dict[str, Any] = {}

    def source(self, worker: str) -> Any:
        """Return a node's source of data."""
        if worker not in self.sources:
            stream = Stream(
                f"s3://{self._bucket}/data",
                storage_options=self._server.options(self._proxy.url),
                cache=self._folder / worker,
                window=_WINDOW,
            )
            self.sources[worker] = open_source(stream)
        return self.sources[worker]

    def read(self, plan: Sequence[Assignment], first: int, steps: int) -> int:
        """Read some steps on all nodes; returns the number of requests for files."""
        before = self.gets()
        for one in plan:
            source = self.source(one.worker)
            source.lookahead = None  # files fetched ahead of the last step would count, too
            order = source.order(_LANES, 17, _PART)
            loader = Loader(source, order, part_rows=_PART, lanes=one.ranks, first_step=first)
            for _ in range(steps):
                loader.next()
            loader.close()
        return self.gets() - before

    def gets(self) -> int:
        """Return the number of requests for files so far."""
        return sum(n for path, n in self._proxy.gets.items() if path.endswith(".arrow"))


def planned(workers: int, previous: Sequence[Assignment] = ()) -> tuple[Assignment, ...]:
    """Return a plan for a number of workers."""
    return assign(_LANES, [WorkerSpeed(f"w{n}") for n in range(workers)], tuple(previous))


def whole_epochs(server: Server, proxy: Proxy, bucket: str, workers: int) -> Row:
    """Count the requests of a cold and of a warm epoch."""
    with tempfile.TemporaryDirectory() as name:
        fleet = Fleet(server, proxy, bucket, Path(name))
        plan = planned(workers)
        order = fleet.source("w0").order(_LANES, 17, _PART)
        steps = steps_per_epoch(order, _PART)
        cold = fleet.read(plan, 0, steps)
        warm = fleet.read(plan, steps, steps)
    return {"workers": workers, "cold GETs per file": cold / _FILES, "warm": warm / _FILES}


def resize(server: Server, proxy: Proxy, bucket: str, before: int, after: int) -> Row:
    """Count the requests of the step after a resize in the middle of an epoch."""
    with tempfile.TemporaryDirectory() as name:
        fleet = Fleet(server, proxy, bucket, Path(name))
        old = planned(before)
        new = planned(after, old)
        order = fleet.source("w0").order(_LANES, 17, _PART)
        half = steps_per_epoch(order, _PART) // 2
        fleet.read(old, 0, half)
        fetched = fleet.read(new, half, 1)
        owners = {lane: one.worker for one in old for lane in one.ranks}
        moved = sum(owners[lane] != one.worker for one in new for lane in one.ranks)
    return {
        "resize": f"{before} -> {after}",
        "lanes moved": moved,
        "GETs": fetched,
        "bound (K per moved lane)": moved * _WINDOW,
    }


def main() -> None:
    """Count all cases and print the results."""
    options = report.options(__doc__ or "")
    counts = (1, 2, 8) if options.quick else range(1, 9)
    with s3_server() as server, proxy_of(server) as proxy:
        bucket = server.fresh_bucket()
        size = _ROWS * 64 // _FILES
        with StreamWriter(
            f"s3://{bucket}/data", file_size=size, storage_options=server.options()
        ) as writer:
            values = np.arange(_ROWS * 8).reshape(_ROWS, 8)
            writer.write(pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(values)}))
        epochs = [whole_epochs(server, proxy, bucket, workers) for workers in counts]
        resizes = [resize(server, proxy, bucket, 4, after) for after in (3, 5, 8)]
    report.show("whole epochs", epochs)
    report.show("resizes", resizes)
    aims = [
        Aim(
            "worst cold GETs per file",
            max(row["cold GETs per file"] for row in epochs),
            most=1 + (_LANES - 1) / _FILES,
        ),
        Aim("worst warm GETs per file", max(row["warm"] for row in epochs), most=0),
        Aim(
            "worst GETs beyond the bound of a resize",
            max(row["GETs"] - row["bound (K per moved lane)"] for row in resizes),
            most=0,
        ),
    ]
    report.finish(aims, {"epochs": epochs, "resizes": resizes}, as_json=options.json)


if __name__ == "__main__":
    main()
