"""CPU per sample of other streaming libraries; run by `benchmarks.streams` in their environments.

It imports nothing of this project, which is not installed there.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest import mock

import numpy as np

_PART = 32


def streaming(folder: Path, array: np.ndarray) -> Callable[[], int]:
    """Write an MDS data set; returns a function that reads an epoch of it through its loader."""
    # It imports all of torchvision for image data sets, which are not used here.
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        whole = f"torchvision{name}"
        sys.modules[whole] = mock.MagicMock(__spec__=ModuleSpec(whole, None))
    sys.modules["torchvision.datasets"].VisionDataset = type("VisionDataset", (), {})
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

    out = folder / "mds"
    if not out.exists():
        with MDSWriter(out=str(out), columns={"tokens": "ndarray:int16"}, size_limit=8 << 20) as to:
            for row in array:
                to.write({"tokens": row})
    dataset = StreamingDataset(local=str(out), shuffle=True, batch_size=_PART)

    def read() -> int:
        return sum(len(batch["tokens"]) for batch in StreamingDataLoader(dataset, batch_size=_PART))

    return read


def litdata(folder: Path, array: np.ndarray) -> Callable[[], int]:
    """Write an optimized data set; returns a function that reads an epoch of it by its loader."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache

    out = folder / "litdata"
    if not out.exists():
        cache = Cache(str(out), chunk_bytes=8 << 20)
        for number, row in enumerate(array):
            cache[number] = {"tokens": row}
        cache.done()
        cache.merge()
    dataset = StreamingDataset(str(out), shuffle=True)

    def read() -> int:
        return sum(len(batch["tokens"]) for batch in StreamingDataLoader(dataset, batch_size=_PART))

    return read


def main() -> None:
    """Measure one library and print JSON."""
    name, folder, repeats = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    array = np.load(folder / "array.npy", mmap_mode="r")
    read = {"mosaicml-streaming": streaming, "litdata": litdata}[name](folder, array)
    read()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        samples = read()
        found.append((time.process_time() - began) / samples * 1e6)
    print(json.dumps({"us": statistics.median(found)}))


if __name__ == "__main__":
    main()
