"""Data that a GPU stream delivers after an abort is garbage, and is never committed."""

from functools import partial

import pytest
import torch

from raytrain_plus.training import step_header
from tests.training.small_tasks import Plain, everything, make_loop, run
from tests.training.wires import Network, NetworkDownError, QueueWire

RANGES = [range(2), range(2, 4)]


class Returned:
    """A stream's wait: it returns at once, even if no data was received."""

    def wait(self):
        pass


class StreamWire(QueueWire):
    """A transport as on a GPU: after an abort waits return, and only the fence raises."""

    aborted = False

    def post(self, sends, receives):
        pending = super().post(sends, receives)
        return Returned() if self.aborted else pending

    def fence(self):
        if self.aborted:
            raise NetworkDownError("the generation was aborted")


class Unfenced(StreamWire):
    def fence(self):
        pass


class GarbageWire(StreamWire):
    """A transport on which data read after an abort is NaN."""

    def post(self, sends, receives):
        pending = super().post(sends, receives)
        for message in receives if self.aborted else ():
            message.tensor.view(torch.uint8).fill_(255)  # NaN in each format
        return pending


def survivor(kind):
    """Return the loop of a worker whose generation was aborted after its first step."""
    network = Network(2)
    wires = [kind(network, index) for index in range(2)]
    loops = [make_loop(Plain(), RANGES, wire) for wire in wires]
    network.run(lambda wire: run(loops[wire.index], 1, RANGES[wire.index]))
    wires[0].aborted = True
    return loops[0]


def test_after_an_abort_the_update_is_not_committed():
    loop = survivor(StreamWire)
    before = everything(loop)
    with pytest.raises(NetworkDownError):
        run(loop, 1, RANGES[0])
    assert everything(loop) == before
    assert not loop.replica.torn


def test_garbage_is_not_reported_as_a_loss_or_gradient_that_is_nan():
    with pytest.raises(NetworkDownError):
        run(survivor(GarbageWire), 1, RANGES[0])


def test_without_the_fence_garbage_would_be_committed(monkeypatch):
    # Names of scalars that are garbage cannot be read at all.
    monkeypatch.setattr(step_header.StepHeader, "_exchange_new", lambda _: {})
    loop = survivor(Unfenced)
    run(loop, 1, RANGES[0])
    undisturbed = make_loop(Plain(), [range(4)], Network(1).wire(0))
    run(undisturbed, 2)
    assert loop.replica.step == 2
    assert loop.replica.digest() != undisturbed.replica.digest()


def test_an_undisturbed_generation_passes_the_fence():
    network = Network(2)
    make = partial(make_loop, Plain(), RANGES)
    loops = [make(StreamWire(network, index)) for index in range(2)]
    network.run(lambda wire: run(loops[wire.index], 2, RANGES[wire.index]))
    undisturbed = make_loop(Plain(), [range(4)], Network(1).wire(0))
    run(undisturbed, 2)
    assert {loop.replica.digest() for loop in loops} == {undisturbed.replica.digest()}
