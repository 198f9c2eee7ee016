"""A newcomer receives the whole state, bit for bit, or nothing."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from raytrain_plus.elastic.policy import make_plan
from raytrain_plus.elastic.worker import healing
from raytrain_plus.elastic.worker.healing import receive_state, send_state
from raytrain_plus.task import Task
from raytrain_plus.training.endpoint import Endpoint
from raytrain_plus.training.state import Replica
from raytrain_plus.training.transport import Transport, TransportError
from raytrain_plus.training.wire import Message

CPU = torch.device("cpu")
HOST = "127.0.0.1"
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "Adam amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
}


class Model(nn.Module):
    """Several types and shapes, the empty ones included."""

    def __init__(self, width=4):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.halves = nn.Parameter(torch.randn(5).bfloat16())
        self.scale = nn.Parameter(torch.randn(()))
        self.nothing = nn.Parameter(torch.zeros(0, 2))
        self.register_buffer("flags", torch.rand(7) > 0.5)
        self.register_buffer("none", torch.zeros(0, dtype=torch.int16))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    def forward(self, x):
        return self.inner(x).sum() * self.scale + self.halves.sum() + self.nothing.sum()


class Small(Task):
    def __init__(self, optimizer="SGD", width=4):
        self.make_optimizer, self.width = OPTIMIZERS[optimizer], width

    def model(self):
        return Model(self.width)

    def optimizer(self, model):
        return self.make_optimizer(model.parameters())


def trained(task, steps, seed=1):
    replica = Replica.build(task, seed, CPU)
    train(replica, steps)
    return replica


def train(replica, steps):
    for _ in range(steps):
        x = torch.randn((8, 3), generator=torch.Generator().manual_seed(replica.step))
        replica.set_learning_rate(1 / (1 + replica.step))
        replica.optimizer.zero_grad()
        replica.model(x).backward()
        replica.optimizer.step()
        replica.step += 1


@pytest.fixture
def group():
    """Return a function that makes connected transports."""
    made, opened = [], []

    def make(size):
        transports = [Transport(index, size, CPU) for index in range(size)]
        made.extend(transports)
        endpoints = [Endpoint(HOST, "secret") for _ in transports]
        opened.extend(endpoints)
        addresses = [endpoint.address for endpoint in endpoints]
        together(
            *(
                lambda t=t, e=e: t.meet(e, addresses, 1)
                for t, e in zip(transports, endpoints, strict=True)
            )
        )
        return transports

    yield make
    for transport in made:
        transport.abort("the test is over")
    for endpoint in opened:
        endpoint.close()


def together(*functions):
    """Run functions in parallel; raise the error of any of them."""
    with ThreadPoolExecutor(len(functions)) as threads:
        for future in [threads.submit(function) for function in functions]:
            future.result(60)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_newcomers_take_over_the_whole_state(group, optimizer):
    ahead = trained(Small(optimizer), 3)
    behind = [trained(Small(optimizer), 2), trained(Small(optimizer), 0, seed=2)]
    assert len({ahead.digest(), *(replica.digest() for replica in behind)}) == 3  # work to do
    before = ahead.digest()
    transports = group(3)
    together(
        lambda: send_state(ahead, [1, 2], transports[0]),
        lambda: receive_state(behind[0], 0, transports[1]),
        lambda: receive_state(behind[1], 0, transports[2]),
    )
    assert ahead.digest() == before
    for replica in behind:
        assert replica.digest() == before
        assert replica.scalars() == ahead.scalars()
        assert replica.step == 3
    for replica in (ahead, *behind):
        train(replica, 2)
    assert len({ahead.digest(), *(replica.digest() for replica in behind)}) == 1


@pytest.mark.parametrize("noted", [None, 0, 2**64 - 1])
def test_the_digest_of_the_state_is_sent_with_it(group, noted):
    one, other = group(2)
    told = []
    together(
        lambda: send_state(trained(Small(), 3), [1], one, noted),
        lambda: told.append(receive_state(trained(Small(), 2), 0, other)),
    )
    assert told == [noted]


def test_two_pairs_heal_at_once(group):
    sources = [trained(Small(), 3), trained(Small(), 3)]
    receivers = [trained(Small(), 1), trained(Small(), 0)]
    transports = group(4)
    together(
        lambda: send_state(sources[0], [2], transports[0]),
        lambda: send_state(sources[1], [3], transports[1]),
        lambda: receive_state(receivers[0], 0, transports[2]),
        lambda: receive_state(receivers[1], 1, transports[3]),
    )
    assert {replica.digest() for replica in receivers} == {sources[0].digest()}


@pytest.mark.parametrize("piece_bytes", [1, 64, healing._PIECE_BYTES])
def test_those_that_have_received_send_it_on(group, piece_bytes, monkeypatch):
    monkeypatch.setattr(healing, "_PIECE_BYTES", piece_bytes)
    ahead = trained(Small("AdamW"), 3)
    behind = [trained(Small("AdamW"), step) for step in (2, 1, 0, 2, 0)]
    sender_of = make_plan.healing([0], [1, 2, 3, 4, 5])
    assert sender_of == {1: 0, 2: 0, 3: 1, 4: 1, 5: 2}
    transports = group(6)
    told = []

    def receive(place):
        to = [receiver for receiver, sender in sender_of.items() if sender == place]
        replica, transport = behind[place - 1], transports[place]
        told.append(receive_state(replica, sender_of[place], transport, to))

    together(
        lambda: send_state(ahead, [1, 2], transports[0], 7),
        *(lambda place=place: receive(place) for place in sender_of),
    )
    assert {replica.digest() for replica in behind} == {ahead.digest()}
    assert told == [7] * 5


def test_the_loss_of_one_that_sends_on_leaves_those_behind_it_as_they_were(group):
    ahead, last = trained(Small(), 3), trained(Small(), 2)
    before = last.digest()
    source, between, end = group(3)

    def lost_half_way():
        sizes = torch.zeros(1, dtype=torch.int64)
        between.exchange([], [Message(0, sizes)])
        between.exchange([Message(2, sizes)], [])
        between.abort("it is lost")
        source.abort("one was lost")

    with pytest.raises(TransportError):
        together(
            lambda: send_state(ahead, [1], source),
            lost_half_way,
            lambda: receive_state(last, 1, end),
        )
    assert last.digest() == before


def test_a_partly_written_replica_is_healed(group):
    ahead, torn = trained(Small(), 3), trained(Small(), 2)
    torn.torn = True
    one, other = group(2)
    together(lambda: send_state(ahead, [1], one), lambda: receive_state(torn, 0, other))
    assert not torn.torn
    assert torn.digest() == ahead.digest()


def header_of(replica):
    tensors = replica.tensors()
    header = {
        "noted": None,
        "scalars": replica.scalars(),
        "tensors": [[n, str(t.dtype), list(t.shape), True] for n, t in tensors.items()],
    }
    return torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("sent", ["nothing", "size", "header", "half of the tensors"])
def test_a_source_that_is_lost_half_way_leaves_the_receiver_as_it_was(group, sent):
    ahead, behind = trained(Small("AdamW"), 3), trained(Small("AdamW"), 2)
    before = behind.digest(), behind.scalars()
    one, other = group(2)
    payload = header_of(ahead)
    filled = [t for t in ahead.tensors().values() if t.numel()]
    contents = [torch.tensor([len(payload)]), payload, *filled[: len(filled) // 2]]
    kept = {"nothing": 0, "size": 1, "header": 2, "half of the tensors": len(contents)}[sent]

    def source():
        one.exchange([Message(1, t) for t in contents[:kept]], [])
        one.abort("the source is lost")

    with pytest.raises(TransportError):
        together(source, lambda: receive_state(behind, 0, other))
    assert (behind.digest(), behind.scalars()) == before
    train(ahead, 1)
    train(behind, 2)
    assert behind.digest() == ahead.digest()  # it can go on from its own state


def test_the_state_of_another_model_is_refused_completely(group):
    ahead, other_model = trained(Small(), 3), trained(Small(width=6), 2)
    before = other_model.digest()
    one, other = group(2)
    with pytest.raises(ValueError, match=r"another model.*model/inner"):
        together(lambda: send_state(ahead, [1], one), lambda: receive_state(other_model, 0, other))
    assert other_model.digest() == before
