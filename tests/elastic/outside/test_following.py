"""A run is followed to its own end, by nothing but its journal."""

import os
import signal
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from raytrain_plus.elastic.messages import Outcome, Plan
from raytrain_plus.elastic.outside import following, joining
from raytrain_plus.elastic.outside.following import LostError, ended, follow
from raytrain_plus.elastic.plan import Assignment
from raytrain_plus.elastic.records.chronicle import Chronicle
from raytrain_plus.observe.journal import FILE_NAME, Journal, read

OUTCOME = Outcome(
    state="finished",
    steps=4,
    digest="state 4",
    loss=0.25,
    metrics={"accuracy": 0.5},
    device_seconds=2.0004,
    checkpoint="/runs/run/checkpoint_00000004",
    faults_left=1,
    samples=30,
    tokens=60,
    costs={"EMA": {"seconds": 0.5}},
)


class Script:
    """Takes the place of time and of Ray: each sleep does what comes next, and no time passes."""

    def __init__(self, monkeypatch, *acts):
        self.acts, self.now, self.stops = list(acts), 0.0, 0
        self.actor = lambda: SimpleNamespace(stop=SimpleNamespace(remote=self.stop))
        monkeypatch.setattr(following, "time", self)
        monkeypatch.setattr(joining, "ray", self)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        if self.acts:
            self.acts.pop(0)()

    def get_actor(self, run, namespace):
        assert (run, namespace) == ("run", "raytrain_plus")
        return self.actor()

    def stop(self):
        self.stops += 1


def begin(folder, **more):
    Journal(folder).write("run", run="run", batch_size=8, batch_tokens=16, **more)


def end(folder, outcome=OUTCOME):
    chronicle = Chronicle(Journal(folder))
    plan = Plan(
        generation=1, step=0, assignments=(Assignment("w0", 0, 8),), healed_by={},
        meeting_point=("", 0), pause_at=None, evaluated=False,
    )  # fmt: skip
    chronicle.expect(plan, "start", None)
    chronicle.started(1, 50.0)
    chronicle.end(outcome)


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def nobody():
    raise ValueError("no actor of that name")


def restarts():
    raise RayActorError


def test_the_outcome_is_read_from_the_journal_as_it_was_written(tmp_path):
    begin(tmp_path)
    end(tmp_path)
    found = ended(read(tmp_path), tmp_path)
    generation = {"generation": 1, "step": 0, "workers": 1, "cause": "start", "pause_seconds": 0.0}
    assert found.outcome == Outcome(**{**vars(OUTCOME), "generations": [generation]})
    assert found.summary["samples"] == {"loaded": 32, "trained": 30}
    assert found.summary["tokens"] == {"loaded": 64, "trained": 60}
    assert found.summary["device_seconds"] == 2.0
    assert found.summary["folder"] == str(tmp_path)
    assert found.summary["wall_seconds"] >= 0.0


def test_a_run_that_was_resumed_ends_as_it_ended_the_last_time(tmp_path):
    begin(tmp_path)
    end(tmp_path, Outcome(state="stopped", steps=2))
    begin(tmp_path, resumed_step=2)
    end(tmp_path)
    found = ended(read(tmp_path), tmp_path)
    assert found.outcome.state == "finished"
    assert len(found.outcome.generations) == 1


def test_a_run_is_followed_until_its_end_is_written(tmp_path, monkeypatch):
    seen = []
    begin(tmp_path)
    step = lambda: Journal(tmp_path).write("step", step=1, loss=0.5)  # noqa: E731
    Script(monkeypatch, step, lambda: None, lambda: end(tmp_path))
    found = follow("run", tmp_path, seen.append)
    assert found.outcome.state == "finished"
    assert [[e["event"] for e in events] for events in seen] == [
        ["run"],
        ["step"],
        [],
        ["generation", "end"],
    ]


def test_the_end_of_the_run_before_is_not_that_of_a_resumed_run(tmp_path, monkeypatch):
    begin(tmp_path)
    end(tmp_path, Outcome(state="stopped", steps=2))
    begin(tmp_path, resumed_step=2)
    Script(monkeypatch, lambda: end(tmp_path))
    assert follow("run", tmp_path).outcome.state == "finished"


def test_what_stands_before_the_offset_is_not_told(tmp_path, monkeypatch):
    begin(tmp_path)
    end(tmp_path, Outcome(state="stopped", steps=2))
    offset, seen = (tmp_path / FILE_NAME).stat().st_size, []
    begin(tmp_path, resumed_step=2)
    end(tmp_path)
    Script(monkeypatch)
    assert follow("run", tmp_path, seen.extend, offset).outcome.state == "finished"
    assert [event["event"] for event in seen] == ["run", "generation", "end"]


def test_a_coordinator_that_is_gone_for_good_is_told(tmp_path, monkeypatch):
    begin(tmp_path)
    script = Script(monkeypatch)
    script.actor = nobody
    with pytest.raises(LostError, match="the coordinator of run run was ended from outside"):
        follow("run", tmp_path)
    assert 2.0 < script.now < 3.0


def test_a_coordinator_that_has_written_its_end_may_be_gone(tmp_path, monkeypatch):
    begin(tmp_path)
    script = Script(monkeypatch)

    def ends_and_goes():
        end(tmp_path)
        nobody()

    script.actor = ends_and_goes
    assert follow("run", tmp_path).outcome.state == "finished"


def test_a_coordinator_that_is_being_started_again_is_waited_for(tmp_path, monkeypatch):
    begin(tmp_path)
    waits = [lambda: None] * 100
    script = Script(monkeypatch, *waits, lambda: end(tmp_path))
    script.actor = restarts
    assert follow("run", tmp_path).outcome.state == "finished"
    assert script.now > 20.0


def test_an_interrupt_stops_the_run_and_a_second_one_leaves_it_alone(tmp_path, monkeypatch):
    begin(tmp_path)
    script = Script(monkeypatch, interrupt, lambda: end(tmp_path))
    assert follow("run", tmp_path).outcome.state == "finished"
    assert script.stops == 1
    other = tmp_path / "other"
    other.mkdir()
    begin(other)
    script = Script(monkeypatch, interrupt, interrupt)
    with pytest.raises(KeyboardInterrupt):
        follow("run", other)
    assert script.stops == 1


def test_sigterm_stops_the_run_too_and_is_as_before_afterwards(tmp_path, monkeypatch):
    begin(tmp_path)
    taken = []
    before = signal.signal(signal.SIGTERM, lambda *_: taken.append(True))
    try:
        script = Script(monkeypatch, terminate, lambda: end(tmp_path))
        assert follow("run", tmp_path).outcome.state == "finished"
        assert script.stops == 1
        assert taken == []
        terminate()  # the control: nobody follows any more
        assert taken == [True]
    finally:
        signal.signal(signal.SIGTERM, before)
