"""How long training waits for a checkpoint, and how fast one is written in the background.

Run as `python -m benchmarks.checkpoint_pause [--quick] [--json]`.

The state is a model of linear layers with AdamW's two moments, of 4, 40 and 400 MB in all.

Pause: `Snapshot.of`, for the first time and into the memory of the previous snapshot, next to a
bare `clone()` of every tensor of the state, and next to `torch.save` of both state dicts into a
file, for which a loop without snapshots waits. Figures are medians over 9 rounds (quick: 3) on one
thread; the methods take turns.

Writing: bytes per second of `write_share` with one worker into a local folder, from memory to the
disk (fsync), with sha256; and of the digest, which one worker computes at the same time.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import report
from benchmarks.report import Aim, Row
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.checkpointer import Snapshot
from raytrain_plus.checkpoint.snapshot import layout_of
from raytrain_plus.task import Task
from raytrain_plus.training.state import Replica

SIZES = (4, 40, 400)  # MB
LAYERS = 12
ROUNDS, QUICK_ROUNDS = 9, 3
MOST = 1.1  # times a bare clone


class Layers(Task):
    """Linear layers.

    Args:
        megabytes: size of the whole state, in MB.
    """

    def __init__(self, megabytes: int) -> None:
        self._width = int((megabytes * 1e6 / 3 / 4 / LAYERS) ** 0.5)

    def model(self) -> nn.Module:
        """Build the layers."""
        return nn.Sequential(*(nn.Linear(self._width, self._width) for _ in range(LAYERS)))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(model.parameters(), lr=1e-3)


def replica_of(megabytes: int) -> Replica:
    """Return a replica that has made one step."""
    replica = Replica.build(Layers(megabytes), 17, torch.device("cpu"))
    for parameter in replica.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    replica.optimizer.step()
    replica.optimizer.zero_grad()
    return replica


def milliseconds(action: Callable[[], Any]) -> float:
    """Return the milliseconds of a call. Its result is freed only after the clock was read."""
    start = time.perf_counter()
    held = action()
    end = time.perf_counter()
    del held
    return (end - start) * 1e3


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-pause-") as name:
        yield Path(name)


def measure(megabytes: int, rounds: int) -> Row:
    """Measure one size of state."""
    replica = replica_of(megabytes)
    tensors = replica.tensors()
    total = sum(tensor.nbytes for tensor in tensors.values())
    taken = Snapshot.of(replica)
    times: dict[str, list[float]] = {}

    def note(name: str, action: Callable[[], Any]) -> None:
        times.setdefault(name, []).append(milliseconds(action))

    with folder() as place:

        def saved() -> None:
            state = {"model": replica.model.state_dict(), "rest": replica.optimizer.state_dict()}
            torch.save(state, place / "state.pt")

        layout = layout_of(replica, 1)
        for number in range(rounds):
            note("fresh", lambda: Snapshot.of(replica))
            note("reused", lambda: Snapshot.of(replica, taken))
            note("clone", lambda: [tensor.clone() for tensor in tensors.values()])
            note("torch.save", saved)
            where = place / str(number)
            note("write", lambda where=where: checkpointer.write_share(where, taken, layout))
            note("digest", taken.digest)
            checkpointer.remove(where)
    found = {name: report.median(values, 2) for name, values in times.items()}
    return {
        "state_mb": round(total / 1e6, 1),
        "snapshot_ms": found["reused"],
        "first_snapshot_ms": found["fresh"],
        "clone_ms": found["clone"],
        "torch_save_ms": found["torch.save"],
        "write_mb_per_s": round(total / 1e3 / found["write"]),
        "digest_mb_per_s": round(total / 1e3 / found["digest"]),
    }


def main() -> None:
    """Measure all sizes."""
    options = report.options("the pause of training for a checkpoint")
    torch.set_num_threads(1)
    rows = [measure(size, QUICK_ROUNDS if options.quick else ROUNDS) for size in SIZES]
    report.show("pause of training for a checkpoint", rows)
    largest = rows[-1]
    share = largest["snapshot_ms"] / largest["clone_ms"]
    aims = [
        Aim("snapshot of the largest state, times a bare clone", round(share, 3), most=MOST),
        Aim(
            "torch.save of the largest state, times the snapshot",
            round(largest["torch_save_ms"] / largest["snapshot_ms"], 1),
            least=2.0,
        ),
    ]
    report.finish(aims, {"pauses": rows}, as_json=options.json)


if __name__ == "__main__":
    main()
