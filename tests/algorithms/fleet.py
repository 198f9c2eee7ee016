"""Several workers in one process: groups that grow, lose a member in mid-step, and resume.

Workers are threads. torch has one set of global generators per process, so that workers compute
their parts and updates one after the other; their messages may come in any order.
"""

import itertools
import threading

from raytrain_plus.checkpoint import checkpointer
from tests.algorithms.tiny import RANKS, build
from tests.training.wires import Network, NetworkDownError


class LostError(RuntimeError):
    """A worker was killed."""


class Turn:
    """Lets one worker at a time compute its parts, and can kill one worker."""

    def __init__(self, lock, kill_in=None):
        self.lock = lock
        self.kill_in = kill_in
        self.held = False

    def __call__(self, phase):
        if phase in ("forward", "update") and not self.held:
            self.lock.acquire()
            self.held = True
        if phase == self.kill_in:
            raise LostError(phase)
        if phase == "exchange":
            self.end()

    def end(self):
        if self.held:
            self.held = False
            self.lock.release()


def ranges_of(workers):
    cuts = [RANKS * i // workers for i in range(workers + 1)]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


class Fleet:
    """The workers of a run.

    Args:
        task: the task.
        make_aspects: returns new aspects for each worker.
    """

    def __init__(self, task, make_aspects):
        self.task = task
        self.make_aspects = make_aspects
        self.loops = [self._newcomer()]

    def _newcomer(self):
        return build(self.task, self.make_aspects())[0]

    @property
    def replica(self):
        return self.loops[0].replica

    def resize(self, workers):
        """Add new workers, healed by a survivor, or remove the oldest ones."""
        tensors = {name: t.clone() for name, t in self.replica.tensors().items()}
        scalars = self.replica.scalars()
        while len(self.loops) < workers:
            loop = self._newcomer()
            loop.replica.load(tensors, scalars)
            self.loops.append(loop)
        self.loops = self.loops[len(self.loops) - workers :]

    def run(self, steps, kill_in=None):
        """Run steps; with `kill_in` the last worker dies in that phase of the first step."""
        lock, size = threading.Lock(), len(self.loops)
        ranges = ranges_of(size)

        def train(wire):
            loop = self.loops[wire.index]
            dies = kill_in is not None and wire.index == size - 1
            turn = loop._enter = Turn(lock, kill_in if dies else None)
            loop.begin_generation(ranges, wire)
            try:
                for _ in range(steps):
                    number = loop.replica.step
                    loop.run_step([self.task.part(number, r) for r in ranges[wire.index]])
                    turn.end()
            finally:
                turn.end()
                loop.end_generation()

        if kill_in is None:
            Network(size).run(train)
            return
        try:
            Network(size).run(train)
        except (LostError, NetworkDownError):
            self.loops.pop()
        else:
            raise AssertionError(f"no worker was killed in {kill_in}")

    def resume(self, folder):
        """Write a checkpoint and go on from it with new workers."""
        aspects = self.make_aspects()
        checkpointer.save(folder, self.replica, "run", aspects)
        self.loops = [self._newcomer() for _ in self.loops]
        for loop in self.loops:
            checkpointer.load(folder, loop.replica)

    def digests(self):
        return {loop.replica.digest() for loop in self.loops}
