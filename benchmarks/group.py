"""A group of workers in this process, without Ray: it grows, heals new workers, and resumes.

Workers are threads with a replica each, connected by queues. torch has one global generator per
process, so the workers compute their parts and their updates one after the other.
"""

import itertools
import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from raytrain_plus.algorithms import Aspect, Weave
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.clock import Clock
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.task import Batch, Task
from raytrain_plus.training.admission import check_start
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.purity import check_function
from raytrain_plus.training.state import Replica
from tests.training.wires import Network

CPU = torch.device("cpu")
RANKS = 4
_CLOCK = Clock(total_steps=1000, steps_per_epoch=100, batch_size=RANKS, evaluate_every=1000)


class Turn:
    """Lets one worker at a time run code that draws from the global generators."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._held = False

    def __call__(self, phase: str) -> None:
        """Take the turn for parts and update, and give it up while waiting for others."""
        if phase in ("forward", "update") and not self._held:
            self._lock.acquire()
            self._held = True
        if phase == "exchange":
            self.end()

    def end(self) -> None:
        """Give the turn up."""
        if self._held:
            self._held = False
            self._lock.release()


class Yielding:
    """A wire whose worker leaves its turn before it waits for others: several buckets wait early.

    Args:
        wire: the wire.
        turn: the worker's turn.
    """

    def __init__(self, wire: Any, turn: Turn) -> None:
        self._wire = wire
        self._turn = turn
        self.index, self.size, self.peers = wire.index, wire.size, wire.peers
        self.device = CPU

    def post(self, sends: Any, receives: Any) -> Any:
        """Start sending and receiving."""
        return _Yielding(self._wire.post(sends, receives), self._turn)

    def wait_any(self, pending: Any, *, block: bool = True) -> None:
        """Wait for one of them."""
        if block:
            pending[0].wait()

    def fence(self) -> None:
        """Return: nothing is left to wait for."""


class _Yielding:
    def __init__(self, pending: Any, turn: Turn) -> None:
        self._pending = pending
        self._turn = turn

    @property
    def is_done(self) -> bool:
        done: bool = self._pending.is_done
        return done

    def wait(self) -> None:
        self._turn.end()
        self._pending.wait()


class Group:
    """The workers of one run.

    Args:
        make_task: returns a new task for each worker.
        part: returns the batch of a step and a logical rank.
        make_aspects: returns new aspects for each worker. Default: none.
        seed: the run's seed. Default 17.
    """

    def __init__(
        self,
        make_task: Callable[[], Task],
        part: Callable[[int, int], Batch],
        make_aspects: Callable[[], Sequence[Aspect]] = tuple,
        seed: int = 17,
    ) -> None:
        self._make_task = make_task
        self._part = part
        self._make_aspects = make_aspects
        self._seed = seed
        self.loops = [self._newcomer()]

    @property
    def replica(self) -> Replica:
        """The state; all workers have the same."""
        return self.loops[0].replica

    def resize(self, workers: int) -> None:
        """Add new workers, healed by a survivor, or remove the oldest ones."""
        while len(self.loops) < workers:
            loop = self._newcomer()
            loop.replica.load(*self._sent())
            self.loops.append(loop)
        self.loops = self.loops[len(self.loops) - workers :]

    def resume(self) -> None:
        """Write a checkpoint, remove all workers, and start one from the checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "checkpoint"
            checkpointer.save(place, self.replica, "run")
            self.loops = [self._newcomer()]
            checkpointer.load(place, self.replica)

    def run(self, steps: int) -> None:
        """Run steps on all workers.

        Raises:
            AssertionError: the workers' states differ afterwards.
            Exception: a step raised it.
        """
        size = len(self.loops)
        cuts = [RANKS * i // size for i in range(size + 1)]
        ranges = [range(a, b) for a, b in itertools.pairwise(cuts)]
        lock = threading.Lock()

        def train(wire: Any) -> None:
            loop = self.loops[wire.index]
            turn = Turn(lock)
            loop._enter = turn  # noqa: SLF001 - set for each generation
            loop.begin_generation(ranges, Yielding(wire, turn))
            try:
                for _ in range(steps):
                    step = loop.replica.step
                    rank, auditor = loop.guard.audit_of(step) or (0, -1)
                    loop.run_step(
                        [self._part(step, rank) for rank in ranges[wire.index]],
                        audit_part=self._part(step, rank) if auditor == wire.index else None,
                    )
                    turn.end()
            finally:
                turn.end()
                loop.end_generation()

        Network(size).run(train)
        assert len({loop.replica.digest() for loop in self.loops}) == 1, "workers differ"

    def _newcomer(self) -> TrainingLoop:
        seed_global_generators(seed_for(self._seed, "task"))
        task, weave = self._make_task(), Weave(self._make_aspects())
        replica = Replica.build(task, self._seed, CPU, weave=weave, clock=_CLOCK)
        loop = TrainingLoop(task, replica, weave, check_every=1, audit_every=2, watch_task=True)
        check_function(loop, lambda: self._part(0, 0))
        check_start(task, replica)
        return loop

    def _sent(self) -> tuple[dict[str, torch.Tensor], Any]:
        replica = self.replica
        tensors = {name: tensor.clone() for name, tensor in replica.tensors().items()}
        return tensors, json.loads(json.dumps(replica.scalars()))


def verdict(make: Callable[[], Group], steps: int = 3) -> str:
    """Train on one worker, in a group that changes, and with a resume; compare the bits.

    Args:
        make: returns a new run.
        steps: number of steps between two changes.

    Returns:
        `"equal"`, or what was wrong.
    """
    try:
        alone = make()
        alone.run(3 * steps)
        changing = make()
        for workers in (2, 3, 1):
            changing.resize(workers)
            changing.run(steps)
        resumed = make()
        resumed.run(steps)
        resumed.resume()
        resumed.run(2 * steps)
    except Exception as error:  # noqa: BLE001 - the result is in the table
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    expected = alone.replica.digest()
    found = {"a group that changes": changing, "a resume": resumed}
    wrong = [name for name, group in found.items() if group.replica.digest() != expected]
    return f"other bits in {' and '.join(wrong)}" if wrong else "equal"
