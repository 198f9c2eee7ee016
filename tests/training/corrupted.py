"""Workers that train together, whose bits can be flipped."""

import torch
from test_bit_sums import flip

from raytrain_plus.algorithms import Weave
from raytrain_plus.training.corruption import CorruptionError
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import Replica
from tests.training.small_tasks import CLOCK, SEED, Normed
from tests.training.small_tasks import part as batch_of
from tests.training.wires import Network

RANKS = 4
CUTS = {
    1: [range(4)],
    2: [range(2), range(2, 4)],
    3: [range(1), range(1, 2), range(2, 4)],
}


class Worker:
    """A loop whose bits can be flipped as it enters its n-th phase."""

    def __init__(self, task, algorithms=(), **watch):
        weave = Weave(algorithms)
        replica = Replica.build(task, SEED, torch.device("cpu"), weave=weave, clock=CLOCK)
        self.task = task
        self.phases = []
        self.strike = None
        self.loop = TrainingLoop(task, replica, weave, self.enter, **watch)

    def enter(self, phase):
        self.phases.append(phase)
        if self.strike is not None and len(self.phases) == self.strike[0]:
            self.strike[1](self.loop)
            self.strike = None


class Group:
    """Workers that train together and give audited parts to their auditors."""

    def __init__(self, workers, make_task=Normed, algorithms=(), *, alike=True, **watch):
        self.alike = alike
        self.cuts = CUTS[workers]
        self.members = [Worker(make_task(), algorithms, **watch) for _ in range(workers)]
        self.begin()

    def begin(self):
        self.network = Network(len(self.members))
        for i, member in enumerate(self.members):
            member.loop.begin_generation(self.cuts, self.network.wire(i), alike=self.alike)

    def step(self):
        """Run one step; returns each worker's result or CorruptionError."""

        def one(wire):
            loop = self.members[wire.index].loop
            number = loop.replica.step
            parts = [batch_of(number, r) for r in self.cuts[wire.index]]
            audit = loop.guard.audit_of(number)
            mine = audit is not None and audit[1] == wire.index
            try:
                return loop.run_step(parts, audit_part=batch_of(number, audit[0]) if mine else None)
            except CorruptionError as error:
                return error

        return self.network.run(one)

    def measure(self, happens):
        """Run a function between two steps that must not change any state."""

        def one(wire):
            loop = self.members[wire.index].loop
            try:
                with loop.guard.unchanged():
                    loop.buffers.snapshot()
                    happens(loop)
                    loop.buffers.restore()
            except CorruptionError as error:
                return error
            return None

        return self.network.run(one)

    def digests(self):
        return [member.loop.replica.digest() for member in self.members]


def flip_parameter(loop):
    flip(next(iter(loop.replica.parameters.values())), 2, 4)


def flip_momentum(loop):
    flip(loop.replica.tensors()["optimizer/0.weight/momentum_buffer"], 1, 0)


def flip_buffer(loop):
    """Flip a bit of the values to which the buffers are restored."""
    flip(loop.buffers.start[0], 0, 7)
    flip(loop.buffers.values()[0], 0, 7)


def flip_counter(loop):
    flip(loop.buffers.start[-1], 0, 3)
    flip(loop.buffers.values()[-1], 0, 3)


def flip_average(loop):
    tensors = loop.replica.tensors()
    flip(tensors[next(name for name in tensors if name.startswith("aspects/EMA"))], 0, 1)


def found(results):
    """Return the finding that all workers have in common, or None."""
    findings = {
        (r.accused, r.tie, r.suspects) if isinstance(r, CorruptionError) else None for r in results
    }
    assert len(findings) == 1
    return findings.pop()


FLIPS = [flip_parameter, flip_momentum, flip_buffer, flip_counter, flip_average]
