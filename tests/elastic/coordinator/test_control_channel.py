"""Messages between the coordinator and its workers: typed, in order, refused if damaged."""

import queue
import random
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from raytrain_plus.checkpoint.upload import Share
from raytrain_plus.elastic.coordinator.control_channel import WorkerGoneError
from raytrain_plus.elastic.coordinator.workers import (
    ShareWritten,
    TrainReturned,
    WorkerActors,
    WorkerLost,
)
from raytrain_plus.elastic.liveness.lifeline import LifelineServer
from raytrain_plus.elastic.protocol import control
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.messages import (
    Assignment,
    Corruption,
    Plan,
    Report,
    WorkerStatus,
)
from raytrain_plus.elastic.protocol.records import Record
from raytrain_plus.elastic.worker.worker import Worker
from tests.elastic.scripted_pool import make_ready, make_spec

PATIENCE = 20.0


def make_plan(workers=2):
    return Plan(
        generation=3,
        step=7,
        assignments=tuple(Assignment(f"w{i}", 4 * i, 4 * i + 4) for i in range(workers)),
        healed_by={1: 0},
        endpoints=tuple((f"10.0.0.{i % 256}", 1000 + i, f"{i:016x}") for i in range(workers)),
        pause_at=None,
        evaluated=True,
        faults=(Fault(step=9, action="kill"),),
        evaluations=((5, {"accuracy": 0.5, "matrix": [[1, 2]]}),),
        values={"loss": float("inf")},
    )


REPORT = Report(
    ending="corrupt",
    step=8,
    committed_at=1.5,
    corruption=Corruption(8, ("w1",), ("w0", "w1"), tie=False, why="it differs"),
    costs={"ema": {"seconds": 0.1, "acted": 3}},
    seconds={"wait": 0.25},
)
TO_WORKER = [
    control.Train(make_plan()),
    control.Pause(3),
    control.TakeCheckpoint(3, 9),
    control.Abort(3, "w1 was lost"),
    control.StepsReceived(4),
    control.AskStatus(5),
    control.AskRecords(6, 7),
    control.Save(7, 8, rescue=True),
    control.CheckArithmetic(8),
]
TO_COORDINATOR = [
    control.Steps(1, 3, 1.0, 17, [Record(8, 3, 2.0, 0.1, compute_seconds=(0.1, 0.2), samples=[])]),
    control.GenerationEnded(3, REPORT),
    control.ShareReported(Share(3, 8, 2)),
    control.Status(5, WorkerStatus(phase="exchange", waiting=True, age=0.1)),
    control.FoundRecords(6, []),
    control.Saved(7, "digest", "folder"),
    control.Arithmetic(8, right=True),
]


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda message: type(message).__name__)
def test_a_message_to_a_worker_arrives_as_it_was_sent(message):
    arrived = control.to_worker(control.encode(message))
    assert type(arrived) is type(message)
    if isinstance(message, control.Train):
        plan = arrived.plan
        assert plan.assignments == message.plan.assignments
        assert plan.endpoints == message.plan.endpoints
        assert dict(plan.healed_by) == {1: 0}
        assert list(plan.faults) == list(message.plan.faults)
        assert list(plan.evaluations) == list(message.plan.evaluations)
        assert plan.values == {"loss": float("inf")}
    else:
        assert arrived == message


@pytest.mark.parametrize("message", TO_COORDINATOR, ids=lambda message: type(message).__name__)
def test_a_message_to_the_coordinator_arrives_as_it_was_sent(message):
    assert control.to_coordinator(control.encode(message)) == message


def test_every_kind_of_message_is_tested():
    assert {type(one) for one in TO_WORKER} == set(control.ToWorker.__args__)
    assert {type(one) for one in TO_COORDINATOR} == set(control.ToCoordinator.__args__)


def test_a_plan_for_a_thousand_workers_takes_few_bytes():
    plan = make_plan(1000)
    frame = control.encode(control.Train(plan))
    assert len(frame) < 40_000
    assert control.to_worker(frame).plan.endpoints == plan.endpoints


def test_damaged_and_foreign_messages_are_refused():
    draws = random.Random(5)
    frames = [control.encode(control.Train(make_plan(1000))), *map(control.encode, TO_WORKER)]
    for frame in frames:
        for cut in (0, 1, len(frame) // 2, len(frame) - 1):
            with pytest.raises(control.ControlError):
                control.to_worker(frame[:cut])
    for _ in range(300):
        with pytest.raises(control.ControlError):
            control.to_coordinator(draws.randbytes(draws.randrange(100)))
    with pytest.raises(control.ControlError):  # it is for the other end
        control.to_coordinator(control.encode(control.Pause(3)))


def await_held(lifeline):
    """Wait until the worker's end knows the connection that the coordinator has made."""
    until = time.monotonic() + PATIENCE
    while not lifeline.is_held:
        assert time.monotonic() < until


class Peer:
    """A worker's end of the channel, which answers as a test says."""

    def __init__(self, answer):
        self.came = queue.Queue()
        self.lifeline = LifelineServer("127.0.0.1", lambda: None, self._receive)
        self._answer = answer

    def _receive(self, frame):
        message = control.to_worker(frame)
        self.came.put(message)
        if (answer := self._answer(message)) is not None:
            self.say(answer)

    def say(self, message):
        assert self.lifeline.send(control.encode(message))


@pytest.fixture
def connect(tmp_path):
    made = []

    def make(answer=lambda _: None):
        peer = Peer(answer)
        actors = WorkerActors(make_spec(tmp_path), None, "node")
        served = SimpleNamespace(future=Future)
        actors._handles["w0"] = SimpleNamespace(serve=SimpleNamespace(remote=lambda: served))
        host, port, secret = peer.lifeline.address
        actors.hold(
            "w0", SimpleNamespace(lifeline=(host, port, secret), node=make_ready("w0").node)
        )
        await_held(peer.lifeline)
        made.append((peer, actors))
        return peer, actors

    yield make
    for peer, actors in made:
        actors.close()
        peer.lifeline.close()


def test_steps_are_taken_before_the_end_of_their_generation(connect):
    peer, actors = connect()
    seen = []
    actors.on_steps = lambda *told: seen.append(("steps", told))
    records = [Record(8, 3, 2.0, 0.1, samples=[])]
    peer.say(control.Steps(1, 3, 1.0, 17, records))
    peer.say(control.GenerationEnded(3, REPORT))
    event = actors.next_event(PATIENCE)
    assert isinstance(event, TrainReturned)
    assert (event.worker, event.generation, event.report) == ("w0", 3, REPORT)
    assert seen == [("steps", ("w0", 3, 1.0, 17, records))]
    assert peer.came.get(timeout=PATIENCE) == control.StepsReceived(1)


def test_an_error_about_steps_ends_the_coordinators_thread(connect):
    peer, actors = connect()

    def fail(*_):
        raise ValueError("no journal")

    actors.on_steps = fail
    peer.say(control.Steps(1, 3, 1.0, 17, []))
    with pytest.raises(ValueError, match="no journal"):
        actors.next_event(PATIENCE)


def test_questions_are_answered_and_shares_are_events(connect):
    def answer(message):
        match message:
            case control.AskStatus():
                status = WorkerStatus(phase="forward", waiting=False, age=0.1)
                return control.Status(message.number, status)
            case control.Save():
                error = "disk full" if message.step == 9 else ""
                return control.Saved(message.number, "digest", "folder", error)
            case control.CheckArithmetic():
                return control.Arithmetic(message.number, right=False)
            case control.AskRecords():
                return control.FoundRecords(
                    message.number, [Record(message.after + 1, 3, 2.0, 0.5)]
                )
        return None

    peer, actors = connect(answer)
    found = actors.statuses(["w0", "w9"], PATIENCE)
    assert found["w0"].phase == "forward"
    assert found["w9"] is None  # it is not connected
    assert actors.save("w0", 8) == "digest"
    assert actors.rescue("w0", 8) == ("digest", "folder")
    with pytest.raises(WorkerGoneError, match="disk full"):
        actors.save("w0", 9)
    assert not actors.computes_right("w0")
    assert [record.step for record in actors.records("w0", 4, PATIENCE)] == [5]
    peer.say(control.ShareReported(Share(3, 8, 2)))
    assert actors.next_event(PATIENCE) == ShareWritten("w0", Share(3, 8, 2))


def test_a_worker_that_dies_answers_no_question_any_more(connect):
    peer, actors = connect()
    failed = []

    def save():
        try:
            actors.save("w0", 8)
        except WorkerGoneError as error:
            failed.append(str(error))

    waiting = threading.Thread(target=save)
    waiting.start()
    assert isinstance(peer.came.get(timeout=PATIENCE), control.Save)
    for line in peer.lifeline._held:
        line.shutdown(2)
    waiting.join(PATIENCE)
    assert failed == ["worker w0 is gone"]
    assert isinstance(actors.next_event(PATIENCE), WorkerLost)
    assert actors.records("w0", 0, PATIENCE) == []


def test_a_worker_that_says_what_nobody_understands_is_lost(connect):
    peer, actors = connect()
    peer.lifeline.send(b"\0garbage")
    event = actors.next_event(PATIENCE)
    assert isinstance(event, WorkerLost)
    assert "cannot be understood" in event.why


def test_a_failed_save_is_told_in_one_line_and_an_interrupt_is_not_caught():
    def fails(error):
        def save(_):
            raise error

        return SimpleNamespace(save=save)

    job = control.Save(3, 8)
    assert Worker._saved(fails(OSError("disk full")), job) == control.Saved(3, error="disk full")
    assert Worker._saved(fails(ValueError()), job) == control.Saved(3, error="ValueError")
    with pytest.raises(KeyboardInterrupt):
        Worker._saved(fails(KeyboardInterrupt()), job)
