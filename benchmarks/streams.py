"""The cost of reading a stream, compared with a bare gather and with other streaming libraries.

Run as `python -m benchmarks.streams [--quick] [--json]`.

Peers: `mosaicml-streaming` and `litdata`, each in its own virtual environment below `benchmarks/`
(`make bench-peers` makes them); a missing one is left out, with a message.
The limit is a vectorised gather from one memory-mapped array.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks import report
from benchmarks.report import Aim, Row
from raytrain_plus.streams.loader import Loader, load_part, steps_per_epoch
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.order import Order, permutation
from raytrain_plus.streams.source import Source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter

_TOKENS = 2048  # of two bytes each: a row of 4 KB
_LANES, _PART = 8, 32
_HERE = Path(__file__).parent
_PEERS = {"mosaicml-streaming": ".venv-streaming", "litdata": ".venv-litdata"}


def write(folder: Path, rows: int) -> Path:
    """Write rows of tokens as a stream, and as one array."""
    draw = np.random.default_rng(0)
    with StreamWriter(folder / "stream", file_size="8MB") as writer:
        for start in range(0, rows, 1024):
            tokens = draw.integers(0, 50_000, (min(1024, rows - start), _TOKENS)).astype(np.int16)
            writer.write(pa.table({"tokens": pa.FixedShapeTensorArray.from_numpy_ndarray(tokens)}))
    np.save(folder / "array.npy", draw.integers(0, 30_000, (rows, _TOKENS)).astype(np.int16))
    return folder


def cpu_per_sample(read: Callable[[], int], repeats: int) -> float:
    """Return the median microseconds of CPU per sample, over all threads."""
    found = []
    for _ in range(repeats):
        began = time.process_time()
        samples = read()
        found.append((time.process_time() - began) / samples * 1e6)
    return report.median(found)


def ours(folder: Path) -> Callable[[], int]:
    """Return a function that reads one epoch as a worker does."""
    source = open_source(Stream(folder / "stream", cache=folder / "cache"))
    order = source.order(_LANES, 17, _PART)
    steps = steps_per_epoch(order, _PART)

    def read() -> int:
        loader = Loader(source, order, part_rows=_PART, lanes=range(_LANES), first_step=0)
        for _ in range(steps):
            loader.next()
        loader.close()
        return steps * _LANES * _PART

    read()  # fills the cache
    return read


def limit(folder: Path) -> Callable[[], int]:
    """Return a function that gathers the same number of shuffled rows from one mapped array."""
    array = np.load(folder / "array.npy", mmap_mode="r")
    order = permutation(len(array), 1)

    def read() -> int:
        for start in range(0, len(array) - _PART + 1, _PART):
            out = torch.empty((_PART, _TOKENS), dtype=torch.int16)
            np.take(array, order[start : start + _PART], axis=0, out=out.numpy(), mode="clip")
        return len(array) // _PART * _PART

    return read


def peer(name: str, folder: Path, repeats: int) -> float | None:
    """Return another library's microseconds of CPU per sample, None if it is not installed."""
    python = _HERE / _PEERS[name] / "bin" / "python"
    if not python.exists():
        print(f"{name} is left out: there is no {python.relative_to(_HERE.parent)}")
        return None
    command = [str(python), str(_HERE / "stream_peers.py"), name, str(folder), str(repeats)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"{name} is left out: {done.stderr.strip().splitlines()[-1]}")
        return None
    return round(float(json.loads(done.stdout.splitlines()[-1])["us"]), 3)


def cost(*, quick: bool) -> tuple[list[Row], list[Aim]]:
    """Compare the CPU per sample."""
    rows, repeats = (4096, 3) if quick else (32_768, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), rows)
        bare = cpu_per_sample(limit(folder), repeats)
        mine = cpu_per_sample(ours(folder), repeats)
        found: dict[str, float | None] = {"bare gather": bare, "raytrain_plus": mine}
        found |= {peer_name: peer(peer_name, folder, repeats) for peer_name in _PEERS}
    table = [
        {"reader": reader, "us of CPU": us, "times ours": round(us / mine, 2)}
        for reader, us in found.items()
        if us is not None
    ]
    aims = [Aim("CPU per sample, times the bare gather", round(mine / bare, 2), most=2)]
    streaming = found["mosaicml-streaming"]
    if streaming is not None:
        aims.append(Aim("times cheaper than Streaming", round(streaming / mine, 1), least=50))
    return table, aims


class Synthetic(Source):
    """Rows that exist as numbers only: each file reads as the same values."""

    def __init__(self, files: int, each: int) -> None:
        table = pa.table({"x": np.arange(each)})
        shard = open_source(table).shards[0]
        super().__init__([shard] * files, (Synthetic, (files, each)), window=8)


def first_batch(rows: int) -> float:
    """Return the seconds to the first batch when a run resumes in the middle of an epoch."""
    each = 16_384
    source = Synthetic(max(_LANES, rows // each), each)
    began = time.perf_counter()
    order = Order(rows=source.rows, lanes=_LANES, seed=17, window=8)
    position = order.shortest_lane // 2 // _PART * _PART
    for lane in range(_LANES):
        load_part(source, order, 3, lane, position, position + _PART)
    return time.perf_counter() - began


def resume() -> tuple[list[Row], list[Aim]]:
    """Measure the time to the first batch by the size of the data."""
    sizes = (10**6, 10**8, 10**9)
    seconds = {size: round(first_batch(size), 4) for size in sizes}
    rows = [{"rows": f"{size:.0e}", "seconds to the first batch": s} for size, s in seconds.items()]
    return rows, [Aim("seconds to the first batch, 1e9 rows", seconds[sizes[-1]], most=1)]


def mixing(window: int | None) -> float:
    """Return how far the batches of a sorted data set are from independent draws.

    It is the total variation between the labels of a batch and those of all rows, averaged over
    batches. For independent draws, it is sampling noise only.
    """
    labels, files, each, batch = 10, 80, 400, 128
    order = Order(rows=[each] * files, lanes=4, seed=1, window=window)
    part = batch // 4
    steps = order.shortest_lane // part
    found = []
    for step in range(steps):
        seen: list[int] = []
        for lane in range(4):
            where, _ = order.locate(0, lane, step * part, (step + 1) * part)
            seen += (where * labels // files).tolist()
        counts = np.bincount(seen, minlength=labels) / batch
        found.append(0.5 * np.abs(counts - 1 / labels).sum())
    return float(np.mean(found))


def independent() -> float:
    """Return the same for independent draws."""
    draw = np.random.default_rng(0)
    counts = draw.multinomial(128, [0.1] * 10, 1000) / 128
    return float(0.5 * np.abs(counts - 0.1).sum(axis=1).mean())


def quality() -> list[Row]:
    """Measure how well windows mix."""
    rows = [{"window": str(k), "total variation": round(mixing(k), 3)} for k in (2, 4, 8, 16)]
    return [*rows, {"window": "independent draw", "total variation": round(independent(), 3)}]


_MEMORY = """
import sys
from pathlib import Path
from raytrain_plus.streams.loader import Loader, steps_per_epoch
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
def peak():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    return int(line.split()[1])
source = open_source(Stream(folder / "stream", cache=folder / "small", cache_limit=limit, window=2))
order = source.order(4, 17, 32)
source.check_room(4)
loader = Loader(source, order, part_rows=32, lanes=range(4), first_step=0)
before, most = peak(), 0
for _ in range(steps_per_epoch(order, 32)):
    loader.next()
    most = max(most, source.shards[0].cache.bytes_used())
loader.close()
print(most, before, peak())
"""


def memory(*, quick: bool) -> tuple[list[Row], list[Aim]]:
    """Measure peak memory and cache bytes over an epoch of data twenty times the cache."""
    rows = 16_384 if quick else 65_536
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with StreamWriter(folder / "stream", file_size=rows * 4096 // 600) as writer:
            draw = np.random.default_rng(0)
            for _ in range(rows // 1024):
                tokens = draw.integers(0, 50_000, (1024, _TOKENS)).astype(np.int16)
                table = {"tokens": pa.FixedShapeTensorArray.from_numpy_ndarray(tokens)}
                writer.write(pa.table(table))
        limit_bytes = rows * 4096 // 20
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, name, str(limit_bytes)],
            check=True, stdout=subprocess.PIPE, text=True, cwd=_HERE.parent,
        )  # fmt: skip
    most, before, after = map(int, done.stdout.split())
    row: Row = {
        "data MB": round(rows * 4096 / 1e6),
        "cache limit MB": round(limit_bytes / 1e6, 1),
        "peak cache MB": round(most / 1e6, 1),
        "peak memory MB": round(after / 1e3),
        "of it before reading MB": round(before / 1e3),
    }
    return [row], [Aim("peak cache bytes / limit", round(most / limit_bytes, 3), most=1)]


def main() -> None:
    """Measure all cases and print the results."""
    options = report.options(__doc__ or "")
    results: dict[str, Any] = {}
    aims: list[Aim] = []
    results["cost"], some = cost(quick=options.quick)
    aims += some
    results["resume"], some = resume()
    aims += some
    results["quality"] = quality()
    results["memory"], some = memory(quick=options.quick)
    aims += some
    for title, rows in results.items():
        report.show(title, rows)
    report.finish(aims, results, as_json=options.json)


if __name__ == "__main__":
    main()
