"""CPU time of `raytrain-plus predict` against a plain PyTorch loop over the same rows.

Run as `python -m benchmarks.predict [--quick] [--json]`.

Both read a Parquet file of images, compute the model in batches of 256 with one thread, and write
the logits as a Parquet file. They run in turn in this process, with the model loaded before. The
small model is one matrix, so that all other costs show. CPU time is that of all threads of the
process, so that a busy machine does not matter; by wall time the command gains, as it reads ahead.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from benchmarks import report
from benchmarks.report import Aim
from raytrain_plus import Task
from raytrain_plus.checkpoint import export
from raytrain_plus.inference.loaded import job_of
from raytrain_plus.inference.predict import BATCH_SIZE, predicting
from raytrain_plus.inference.trained_model import find_model
from raytrain_plus.models.resnet import ResNet

SIDE = 28
_USUAL = "residual network"


class Images(Task):
    """Classifies images by a residual network, or by one matrix."""

    columns = {"image": (1, SIDE, SIDE)}  # noqa: RUF012 - a constant of the class
    target = "none"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def model(self) -> nn.Module:
        """Build the model."""
        if self.kind == _USUAL:
            return ResNet()
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 10))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer, which nothing uses."""
        return torch.optim.SGD(model.parameters(), 0.1)

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return what nothing uses."""
        del batch
        return outputs.sum(1)


def rows(folder: Path, number: int) -> Path:
    """Write some images; returns the file."""
    path = folder / f"{number}.parquet"
    if not path.exists():
        images = np.random.default_rng(1).random((number, 1, SIDE, SIDE), np.float32)
        pq.write_table(
            pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images)}), path
        )
    return path


def plain(model: nn.Module, data: Path, to: Path) -> float:
    """Return the CPU seconds of a loop as one writes it by hand."""
    began = time.process_time()
    found = []
    with torch.no_grad():
        for batch in pq.ParquetFile(data).iter_batches(BATCH_SIZE):
            flat = batch.column(0)
            values = flat.storage if isinstance(flat, pa.ExtensionArray) else flat
            images = values.flatten().to_numpy(zero_copy_only=False).copy()
            found.append(model(torch.from_numpy(images).view(-1, 1, SIDE, SIDE)))
    logits = torch.cat(found).numpy()
    column = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1])
    pq.write_table(pa.table({"prediction": column}), to, compression="zstd")
    return time.process_time() - began


@dataclass(frozen=True)
class Own:
    """The command's work, with the model loaded."""

    compute: Callable[[tuple[int, int]], bytes]
    parts: list[tuple[int, int]]

    def seconds(self, folder: Path) -> float:
        """Return the CPU seconds of predicting and writing all rows."""
        began = time.process_time()
        for part in self.parts:
            (folder / f"{part[0]}.parquet").write_bytes(self.compute(part))
        return time.process_time() - began


def measure(kind: str, number: int, repeats: int, folder: Path) -> tuple[float, float, float]:
    """Return rows per CPU second of the loop and of the command, and the ratio of their times."""
    task, data = Images(kind), rows(folder, number)
    torch.manual_seed(1)
    model = task.model().eval()
    weights = folder / "model.safetensors"
    export.write(model, weights)
    job, loaded = job_of(task, find_model(str(weights), storage=str(folder)))
    work = predicting(job, loaded, data=str(data), keep=(), batch_size=BATCH_SIZE)
    times = []
    for _ in range(repeats):
        with work.opened() as compute:  # opens the file again, as a command does
            own = Own(compute, work.parts)
            times.append((plain(model, data, folder / "plain.out"), own.seconds(folder)))
    alone, whole = (statistics.median(one) for one in zip(*times, strict=True))
    return number / alone, number / whole, statistics.median(a / b for a, b in times)


def main() -> None:
    """Measure both models."""
    options = report.options(__doc__ or "")
    torch.set_num_threads(1)
    repeats, scale = (3, 1) if options.quick else (7, 2)
    cases = {_USUAL: 4_000 * scale, "one matrix": 20_000 * scale}
    found, aims = [], []
    with tempfile.TemporaryDirectory() as place:
        for i, (kind, number) in enumerate(cases.items()):
            folder = Path(place) / str(i)
            folder.mkdir()
            alone, whole, ratio = measure(kind, number, repeats, folder)
            speeds = {"loop, rows/s": round(alone), "predict, rows/s": round(whole)}
            found.append({"model": kind, "rows": number, **speeds, "ratio": round(ratio, 2)})
            if kind == _USUAL:  # the other shows what reading and writing cost
                aims.append(Aim(f"{kind}: predict / loop", round(ratio, 2), least=0.9))
    report.show("Rows per CPU second, one thread", found)
    report.finish(aims, {"predict": found}, as_json=options.json)


if __name__ == "__main__":
    main()
