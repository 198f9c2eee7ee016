"""The paths of a transport on a GPU, on a double of c10d's NCCL backend."""

import datetime as dt
import threading

import pytest
import torch

from raytrain_plus.training import nccl
from raytrain_plus.training.endpoint import Endpoint
from raytrain_plus.training.transport import Transport, TransportError
from raytrain_plus.training.wire import Message

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PATIENCE = 20.0


class Work:
    """Like NCCL's work: a wait returns at once, since it only orders streams."""

    def wait(self, timeout):
        pass


class Backend:
    """`ProcessGroupNCCL` with the signatures of its bindings: coalescing calls have no argument."""

    def __init__(self):
        self.calls, self.open, self.aborted = [], False, threading.Event()
        self.fails_at = None

    def _start_coalescing(self):
        self.open = True
        self.calls.append("start")

    def _end_coalescing(self):
        self.open = False
        self.calls.append("end")
        return Work()

    def _message(self, name, peer, tag):
        assert self.open, "a message outside of a group call can deadlock"
        if name == self.fails_at:
            raise RuntimeError("NCCL communicator was aborted on rank 0")
        self.calls.append((name, peer, tag))

    def send(self, _tensors, peer, tag):
        self._message("send", peer, tag)

    def recv(self, _tensors, peer, tag):
        self._message("recv", peer, tag)

    def abort(self):
        self.aborted.set()


class Mark:
    """An event of a stream; the test says when it is reached."""

    def __init__(self):
        self.reached = threading.Event()
        self.asked = threading.Event()

    def query(self):
        self.asked.set()
        return self.reached.is_set()


def group_of(backend, mark=None, **settings):
    settings = {"synchronize": lambda _: None, "give_up": pytest.fail, **settings}
    reached = Mark()
    reached.reached.set()
    return nccl.NcclGroup(backend, CPU, record=lambda _: mark or reached, **settings)


def joined(group):
    """Return a transport between two workers whose group has been made."""
    made = Transport(0, 2, GPU)
    made._nccl = group
    return made


def messages():
    return [Message(1, torch.zeros(3))], [Message(1, torch.zeros(3))]


def in_thread(function):
    """Call a function in a thread; return a function that waits and returns its error."""
    caught = []

    def run():
        try:
            function()
        except TransportError as error:
            caught.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(PATIENCE)
        assert not thread.is_alive()
        return caught

    return result


def test_messages_are_posted_in_one_group_call():
    backend = Backend()
    joined(group_of(backend)).exchange(*messages())
    assert backend.calls == ["start", ("recv", 1, 0), ("send", 1, 0), "end"]


def test_the_double_refuses_what_the_bindings_refuse():
    with pytest.raises(TypeError):
        Backend()._start_coalescing(GPU)


@pytest.mark.parametrize("failing", ["recv", "send"])
def test_a_failed_post_is_a_lost_peer_and_leaves_no_group_call_open(failing):
    backend = Backend()
    backend.fails_at = failing
    with pytest.raises(TransportError, match="a peer was lost: NCCL communicator was aborted"):
        joined(group_of(backend)).post(*messages())
    assert not backend.open


def test_an_error_of_this_workers_own_device_is_not_reported_as_a_lost_peer():
    class Broken(Backend):
        def send(self, _tensors, _peer, _tag):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    transport = joined(group_of(Broken()))
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        transport.post(*messages())
    transport.abort("w2 was lost")  # an error after an abort is not an error of the device
    with pytest.raises(TransportError, match="w2 was lost"):
        transport.post(*messages())


def test_a_wait_returns_when_the_device_has_received_and_not_before():
    mark = Mark()
    ended = in_thread(lambda: joined(group_of(Backend(), mark)).exchange(*messages()))
    assert mark.asked.wait(PATIENCE)
    mark.reached.set()
    assert ended() == []


@pytest.mark.parametrize("waits", ["exchange", "fence"])
def test_an_abort_ends_a_wait_also_if_the_stream_then_continues(waits):
    mark, backend = Mark(), Backend()
    transport = joined(group_of(backend, mark))
    call = {"exchange": lambda: transport.exchange(*messages()), "fence": transport.fence}[waits]
    ended = in_thread(call)
    assert mark.asked.wait(PATIENCE)
    transport.abort("w2 was lost")
    mark.reached.set()  # the kernels have ended; they received garbage
    assert ended() == ["w2 was lost"]
    assert backend.aborted.wait(PATIENCE)


def test_an_abort_returns_although_the_backend_hangs_and_the_process_then_ends():
    class Hanging(Backend):
        def abort(self):
            threading.Event().wait()

    told = []
    ended = threading.Event()

    def give_up(reason):
        told.append(reason)
        ended.set()

    transport = joined(group_of(Hanging(), give_up=give_up, abort_seconds=0.05))
    transport.abort("w2 was lost")
    with pytest.raises(TransportError, match="w2 was lost"):
        transport.check()
    assert ended.wait(PATIENCE)
    assert told == ["NCCL did not abort within 0 s"]


def test_an_abort_that_works_ends_no_process():
    done = threading.Event()
    group = group_of(Backend(), synchronize=lambda _: done.set(), abort_seconds=PATIENCE)
    group.abort()
    assert done.wait(PATIENCE)


@pytest.fixture
def partners():
    """Return two endpoints."""
    made = [Endpoint("127.0.0.1", "secret") for _ in range(2)]
    yield made
    for endpoint in made:
        endpoint.close()


def test_members_exchange_greetings_while_they_meet_and_an_abort_reaches_them(
    monkeypatch, partners
):
    mark, backend = Mark(), Backend()
    group = group_of(backend, mark)
    monkeypatch.setattr(nccl, "open_store", lambda *_: None)
    monkeypatch.setattr(nccl, "connect", lambda *_: group)
    addresses = [endpoint.address for endpoint in partners]

    def partner_of(number):
        other = Transport(1, 2, CPU)
        return in_thread(lambda: other.meet(partners[1], addresses, number))

    met = Transport(0, 2, GPU)
    greeted = []
    monkeypatch.setattr(group, "greet", lambda peers: (greeted.append(peers), mark.query()))
    came = partner_of(1)
    met.meet(partners[0], addresses, 1)
    assert came() == []
    assert greeted == [[1]]

    waiting = Transport(0, 2, GPU)
    hangs = threading.Event()
    monkeypatch.setattr(group, "greet", lambda _: (hangs.set(), threading.Event().wait()))
    ended = in_thread(lambda: waiting.meet(partners[0], addresses, 2))
    partner_of(2)
    assert hangs.wait(PATIENCE)
    waiting.abort("w2 did not come")
    assert ended() == ["w2 did not come"]
    assert backend.aborted.wait(PATIENCE)


def test_all_members_reach_the_store_of_the_first_one():
    """NCCL hands out its unique id over it."""
    given = []

    def share(place):
        if not given:
            given.append(place)
        return given[0]

    first, second = (nccl.open_store("127.0.0.1", index, share) for index in (0, 1))
    first.set("id", b"unique")
    assert second.get("id") == b"unique"
    host, port, secret = given[0].numpy().tobytes().rstrip(b"\0").decode().split()
    assert len(secret) == 32
    patience = dt.timedelta(seconds=0.2)
    stranger = torch.distributed.TCPStore(host, int(port), is_master=False, timeout=patience)
    with pytest.raises(torch.distributed.DistStoreError):  # its keys are others
        stranger.get("id")


def test_a_greeting_exchanges_bytes_with_every_peer():
    backend = Backend()
    group_of(backend).greet([0, 2])
    assert [call[:2] for call in backend.calls if isinstance(call, tuple)] == [
        ("recv", 0),
        ("recv", 2),
        ("send", 0),
        ("send", 2),
    ]


@pytest.mark.parametrize(
    ("chosen", "workspace"),
    [(None, ":4096:8"), (":16:8", ":16:8"), (":4096:8", ":4096:8"), (":2:1", ":4096:8")],
)
def test_the_environment_makes_matrix_products_deterministic(chosen, workspace):
    current = {} if chosen is None else {"CUBLAS_WORKSPACE_CONFIG": chosen}
    assert nccl.environment(current)["CUBLAS_WORKSPACE_CONFIG"] == workspace


def test_the_environment_keeps_the_watchdog_from_ending_survivors():
    wanted = nccl.environment({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "3"})
    assert wanted["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert wanted["TORCH_NCCL_ENABLE_MONITORING"] == "0"


def test_a_version_whose_abort_can_hang_is_refused():
    nccl.check_version((2, 26, 2))
    with pytest.raises(nccl.NcclVersionError, match=r"NCCL 2\.25\.1 can hang.*2\.26\.2 or later"):
        nccl.check_version((2, 25, 1))
