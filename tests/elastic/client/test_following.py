"""A driver follows a run to its end by its journal only."""

import signal
import uuid
from types import SimpleNamespace

import pytest
from ray.exceptions import GetTimeoutError, RayActorError

from raytrain_plus.elastic.client import coordinator_watch, find_run, following
from raytrain_plus.elastic.client.following import LostError, ended, follow
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.protocol.messages import Assignment, CoordinatorHealth, Outcome, Plan
from raytrain_plus.interrupts import RunInterrupted
from raytrain_plus.observe.causes import Cause
from raytrain_plus.observe.journal import FILE_NAME, Journal, read
from raytrain_plus.observe.stored_journal import open_journal
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.segments import SegmentedFile, SegmentError
from raytrain_plus.storage.store import Store

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
    """Replaces time and Ray: each sleep does the next scripted action, and no time passes."""

    def __init__(self, monkeypatch, *acts):
        self.acts, self.now, self.stops, self.killed = list(acts), 0.0, 0, []
        self.health = CoordinatorHealth
        self.actor = lambda: SimpleNamespace(
            stop=SimpleNamespace(remote=self.stop),
            health=SimpleNamespace(remote=self.answer),
            _actor_id=b"",
        )
        self.state = "ALIVE"
        self._private = SimpleNamespace(
            state=SimpleNamespace(state=SimpleNamespace(actor_table=self.table))
        )
        monkeypatch.setattr(following, "time", self)
        monkeypatch.setattr(find_run, "ray", self)
        monkeypatch.setattr(coordinator_watch, "ray", self)
        monkeypatch.setattr(coordinator_watch.actors, "ray", self)
        monkeypatch.setattr(coordinator_watch.own_ray, "dead_daemon", lambda: self.dead)
        monkeypatch.setattr(coordinator_watch.own_ray, "end_daemons", self.end_daemons)
        monkeypatch.setattr(coordinator_watch.os, "kill", lambda *told: self.killed.append(told))

    dead = None

    def end_daemons(self):
        raise AssertionError(self.dead)

    def answer(self):
        return self.health()

    def is_initialized(self):
        return True

    def get(self, told, timeout):
        assert timeout > 0
        return told

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "here")

    def table(self, _):
        return {
            "State": self.state,
            "Pid": 4711,
            "NumRestarts": 6,
            "Address": {"NodeID": "here"},
        }

    def monotonic(self):
        return self.now

    def time(self):
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


@pytest.fixture(autouse=True)
def usual_signals():
    """Signals as in a terminal, even if the test runner ignores some."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def begin(folder, **more):
    Journal(folder).write("run", run="run", batch_size=8, batch_tokens=16, **more)


def end(folder, outcome=OUTCOME):
    run_log = RunLog(Journal(folder))
    plan = Plan(
        generation=1, step=0, assignments=(Assignment("w0", 0, 8),), healed_by={},
        endpoints=(("", 0, ""),), pause_at=None, evaluated=False,
    )  # fmt: skip
    run_log.expect(plan, [Cause("start")], None)
    run_log.started(1, 50.0)
    run_log.end(outcome)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def interrupt_in_a_notebook():
    raise KeyboardInterrupt


def hang_up():
    signal.raise_signal(signal.SIGHUP)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def no_actor():
    raise ValueError("no actor of that name")


def restarts():
    raise RayActorError


def does_not_answer():
    raise GetTimeoutError


def test_the_outcome_is_read_from_the_journal_as_it_was_written(tmp_path):
    begin(tmp_path)
    end(tmp_path)
    found = ended(read(tmp_path), tmp_path)
    generation = {
        "generation": 1,
        "step": 0,
        "workers": 1,
        "causes": [{"kind": "start"}],
        "pause_seconds": 0.0,
    }
    assert found.outcome == Outcome(**{**vars(OUTCOME), "generations": [generation]})
    assert found.summary["samples"] == {"loaded": 32, "trained": 30}
    assert found.summary["tokens"] == {"loaded": 64, "trained": 60}
    assert found.summary["device_seconds"] == 2.0
    assert found.summary["folder"] == str(tmp_path)
    assert found.summary["wall_seconds"] >= 0.0


def test_a_resumed_run_has_the_state_of_its_last_end(tmp_path):
    begin(tmp_path)
    end(tmp_path, Outcome(state="stopped", steps=2))
    begin(tmp_path, resumed_step=2)
    end(tmp_path)
    found = ended(read(tmp_path), tmp_path)
    assert found.outcome.state == "finished"
    assert len(found.outcome.generations) == 1


def test_a_change_since_before_a_resume_marks_the_run(tmp_path):
    begin(tmp_path, changes=["seed: was 1, is 2"])
    changed = "environment: torch is 2, before it was 1"
    Journal(tmp_path).write("environment", fingerprint={"torch": "2"}, changes=[changed])
    end(tmp_path)
    assert ended(read(tmp_path), tmp_path).summary["changes"] == ["seed: was 1, is 2", changed]
    begin(tmp_path, resumed_step=2)
    end(tmp_path)
    assert "changes" not in ended(read(tmp_path), tmp_path).summary


def test_a_run_that_is_followed_is_marked_by_what_differs_from_before_a_resume(
    tmp_path, monkeypatch
):
    begin(tmp_path)
    changed = "environment: torch is 2, before it was 1"

    def other():
        Journal(tmp_path).write("environment", fingerprint={"torch": "2"}, changes=[changed])

    Script(monkeypatch, other, lambda: end(tmp_path))
    assert follow("run", tmp_path).summary["changes"] == [changed]


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


def test_the_end_before_a_resume_does_not_end_the_resumed_run(tmp_path, monkeypatch):
    begin(tmp_path)
    end(tmp_path, Outcome(state="stopped", steps=2))
    begin(tmp_path, resumed_step=2)
    Script(monkeypatch, lambda: end(tmp_path))
    assert follow("run", tmp_path).outcome.state == "finished"


def test_lines_before_the_offset_are_not_shown(tmp_path, monkeypatch):
    begin(tmp_path)
    end(tmp_path, Outcome(state="stopped", steps=2))
    offset, seen = (tmp_path / FILE_NAME).stat().st_size, []
    begin(tmp_path, resumed_step=2)
    end(tmp_path)
    Script(monkeypatch)
    assert follow("run", tmp_path, seen.extend, offset).outcome.state == "finished"
    assert [event["event"] for event in seen] == ["run", "generation", "end"]


def test_a_coordinator_that_is_gone_for_good_is_reported(tmp_path, monkeypatch):
    begin(tmp_path)
    script = Script(monkeypatch)
    script.actor = no_actor
    with pytest.raises(LostError, match="the coordinator of run run was ended from outside"):
        follow("run", tmp_path)
    assert 2.0 < script.now < 3.0


def test_a_coordinator_that_has_written_its_end_may_be_gone(tmp_path, monkeypatch):
    begin(tmp_path)
    script = Script(monkeypatch)

    def ends_and_goes():
        end(tmp_path)
        no_actor()

    script.actor = ends_and_goes
    assert follow("run", tmp_path).outcome.state == "finished"


def test_a_coordinator_that_is_being_started_again_is_waited_for(tmp_path, monkeypatch):
    begin(tmp_path)
    waits = [lambda: None] * 100
    script = Script(monkeypatch, *waits, lambda: end(tmp_path))
    script.actor = restarts
    assert follow("run", tmp_path).outcome.state == "finished"
    assert script.now > 20.0


@pytest.mark.parametrize("signalled", [interrupt, interrupt_in_a_notebook])
def test_an_interrupt_stops_the_run_and_a_second_one_leaves_it_alone(
    tmp_path, monkeypatch, signalled, capsys
):
    begin(tmp_path)
    script = Script(monkeypatch, signalled, lambda: end(tmp_path))
    assert follow("run", tmp_path).outcome.state == "finished"
    assert script.stops == 1
    assert "SIGINT: the run ends after the step in flight" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    begin(other, total_steps=9)
    journal = Journal(other)
    journal.write("step", step=3, loss=1.0)
    journal.write("checkpoint", step=2, folder="/kept/checkpoint_00000002")
    journal.write("checkpoint", error="no space left", step=3)
    script = Script(monkeypatch, lambda: None, signalled, signalled)
    with pytest.raises(
        RunInterrupted, match=r"committed 3 steps.*that of step 2.*attach run"
    ) as left:
        follow("run", other)
    assert script.stops == 1
    script = Script(monkeypatch, lambda: None, signalled, signalled)
    with pytest.raises(RunInterrupted, match=r"step 2; a later one may .* --resume --name run"):
        follow("run", other, is_ours=True)
    assert (left.value.number, left.value.status) == (signal.SIGINT, 130)
    assert left.value.summary == {
        "run": "run",
        "state": "interrupted",
        "steps": 3,
        "total_steps": 9,
        "loss": 1.0,
        "checkpoint": "/kept/checkpoint_00000002",
        "folder": str(other),
    }


def test_a_closed_terminal_stops_the_run_only_where_it_would_end_with_this_process(
    tmp_path, monkeypatch
):
    begin(tmp_path)
    script = Script(monkeypatch, hang_up)
    with pytest.raises(RunInterrupted, match="left alone by SIGHUP") as left:
        follow("run", tmp_path)
    assert (script.stops, left.value.status) == (0, 129)
    script = Script(monkeypatch, hang_up, lambda: end(tmp_path))
    assert follow("run", tmp_path, is_ours=True).outcome.state == "finished"
    assert script.stops == 1


def test_ignored_signals_stay_ignored(tmp_path, monkeypatch):
    begin(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        script = Script(monkeypatch, hang_up, lambda: end(tmp_path))
        assert follow("run", tmp_path).outcome.state == "finished"
        assert script.stops == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_coordinator_that_does_not_stop_is_left_after_a_while(tmp_path, monkeypatch):
    begin(tmp_path)
    script = Script(monkeypatch, interrupt, *[lambda: None] * 200)
    script.actor = restarts
    with pytest.raises(RunInterrupted, match="its coordinator does not answer"):
        follow("run", tmp_path)
    assert 15.0 < script.now < 20.0


def test_a_stopped_coordinator_is_ended_and_a_starting_one_is_not(tmp_path, monkeypatch):
    begin(tmp_path)
    script = Script(monkeypatch, *[lambda: None] * 200, lambda: end(tmp_path))
    script.health = does_not_answer
    follow("run", tmp_path)
    assert script.killed == [(4711, signal.SIGKILL)]
    (tmp_path / FILE_NAME).unlink()
    begin(tmp_path)
    script = Script(monkeypatch, *[lambda: None] * 200, lambda: end(tmp_path))
    script.health, script.state = does_not_answer, "RESTARTING"
    follow("run", tmp_path)
    assert script.killed == []


@pytest.mark.parametrize(("told", "deadline"), [({}, 30.0), ({"coordinator_deadline": 12.0}, 12.0)])
def test_the_runs_setting_limits_the_silence_of_a_coordinator(
    tmp_path, monkeypatch, told, deadline
):
    begin(tmp_path, elastic=told)
    script = Script(monkeypatch, *[lambda: None] * 200, lambda: end(tmp_path))
    at = []
    monkeypatch.setattr(coordinator_watch.os, "kill", lambda *_: at.append(script.now))
    script.health = does_not_answer
    follow("run", tmp_path)
    assert deadline < at[0] < deadline + 3.0


def test_a_slow_restart_of_the_coordinator_is_not_a_hang(tmp_path, monkeypatch):
    begin(tmp_path)
    script = Script(monkeypatch)
    script.health, script.state = does_not_answer, "RESTARTING"

    def turn():
        if script.now > 45.0:
            script.state = "ALIVE"
        if script.now > 65.0 and not script.ended:
            script.ended = True
            end(tmp_path)

    script.ended = False
    script.acts = [turn] * 1000
    follow("run", tmp_path)
    assert script.now > 65.0
    assert script.killed == []


def test_a_coordinator_that_never_comes_up_is_an_error_within_the_start_timeout(
    tmp_path, monkeypatch
):
    begin(tmp_path, elastic={"start_timeout": 20.0})
    monkeypatch.setattr(
        coordinator_watch.memory_monitor, "trouble", lambda: "; the memory is used up"
    )
    script = Script(monkeypatch)
    script.health, script.state = does_not_answer, "RESTARTING"
    told = r"did not come up within 2\d s; Ray has started it 7 times; the memory is used up"
    with pytest.raises(LostError, match=told):
        follow("run", tmp_path)
    assert 20.0 < script.now < 25.0


def test_the_end_of_a_daemon_of_our_own_ray_is_the_end_of_the_run(tmp_path, monkeypatch):
    begin(tmp_path)
    script = Script(monkeypatch)
    script.dead = "gcs_server (process 3, status -9)"
    journal = Journal(tmp_path)
    # The workers train on until the raylet ends, too.
    monkeypatch.setattr(
        coordinator_watch.own_ray, "end_daemons", lambda: journal.write("step", step=5, loss=0.5)
    )
    told = r"gcs_server .* has ended, and the run's workers with it; by its journal.*5 steps"
    with pytest.raises(LostError, match=told):
        follow("run", tmp_path)
    assert script.now < 3.0


def test_an_end_that_cannot_be_written_is_taken_from_the_coordinator(tmp_path, monkeypatch):
    begin(tmp_path)
    written = tmp_path / "other"
    written.mkdir()
    end(written)
    script = Script(monkeypatch)
    script.health = lambda: CoordinatorHealth(
        unwritten="no space left", unwritten_end=read(written)
    )
    assert follow("run", tmp_path).outcome.digest == OUTCOME.digest


def test_a_watcher_whose_terminal_is_closed_does_not_end_the_run(tmp_path, monkeypatch):
    begin(tmp_path)

    def closed(_):
        raise BrokenPipeError

    Script(monkeypatch, lambda: end(tmp_path))
    assert follow("run", tmp_path, closed).outcome.state == "finished"


def test_sigterm_stops_the_run_too_and_is_as_before_afterwards(tmp_path, monkeypatch):
    begin(tmp_path)
    taken = []
    before = signal.signal(signal.SIGTERM, lambda *_: taken.append(True))
    try:
        script = Script(monkeypatch, terminate, lambda: end(tmp_path))
        assert follow("run", tmp_path).outcome.state == "finished"
        assert script.stops == 1
        assert taken == []
        terminate()  # the control: no process follows the run any more
        assert taken == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


# -- in an object store


def write_in_store(store, *kinds):
    opened = open_journal(store)
    for kind in kinds:
        fields = {
            "run": {"run": "run", "batch_size": 8, "batch_tokens": 16},
            "step": {"step": 1, "loss": 0.5},
            "end": {"state": "finished", "step": 1},
        }[kind]
        opened.write(kind, **fields)


def test_a_run_in_an_object_store_is_followed_while_the_store_fails_now_and_then(
    monkeypatch, capsys
):
    store = Store(f"memory://{uuid.uuid4().hex}/run")
    write_in_store(store, "run")
    lists, answers = SegmentedFile.list_now, iter([False, True, False])

    def fails_at_times(self):
        if not next(answers, True):
            raise StoreError("no answer")
        lists(self)

    monkeypatch.setattr(SegmentedFile, "list_now", fails_at_times)
    script = Script(monkeypatch, lambda: None, lambda: write_in_store(store, "step", "end"))
    script.actor = no_actor  # what is new is read once more before the run counts as lost
    found = follow("run", store)
    assert (found.outcome.state, found.summary["folder"]) == ("finished", str(store))
    assert capsys.readouterr().err.count("the journal cannot be read now: no answer") == 1


def test_a_coordinator_in_an_object_store_that_is_gone_for_good_is_reported(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}/run")
    write_in_store(store, "run", "step")
    Script(monkeypatch).actor = no_actor
    with pytest.raises(LostError, match=r"ended from outside; by its journal .* 1 steps"):
        follow("run", store)


def test_a_missing_segment_is_named(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}/run")
    write_in_store(store, "run", "step")
    store.inside("journal").delete("00000002.jsonl")
    Script(monkeypatch)
    with pytest.raises(SegmentError, match=r"00000002\.jsonl is missing"):
        follow("run", store)
