"""A run's journal has each step once, in order, whichever workers report it and how often."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.elastic.coordinator.run_log import DivergenceError, RunLog
from raytrain_plus.elastic.protocol.messages import Assignment, Plan
from raytrain_plus.elastic.protocol.records import Record
from raytrain_plus.observe.causes import Cause
from raytrain_plus.observe.journal import FILE_NAME, Journal, read


def loss_of(step):
    return 1.0 / (step + 1)


def step(number, generation=1, loss=None):
    loss = loss_of(number) if loss is None else loss
    return Record(number, generation, time=1000.0 + number, loss=loss, busy_seconds=0.5)


def evaluation(number, accuracy=0.5, generation=1):
    metrics = {"accuracy": accuracy}
    return Record(number, generation, time=1000.0 + number, metrics=metrics)


def plan(generation, first=0, workers=2):
    return Plan(
        generation=generation,
        step=first,
        assignments=tuple(Assignment(f"w{i}", i, i + 1) for i in range(workers)),
        healed_by={},
        endpoints=(("127.0.0.1", 1, "00"),),
        pause_at=None,
        evaluated=False,
    )


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def begin(folder, first=0):
    run_log = RunLog(Journal(folder))
    run_log.extend_to(first)
    return run_log


def steps_in(folder):
    return [event["step"] for event in read(folder) if event["event"] == "step"]


def test_a_step_is_written_with_every_bit_of_its_loss(folder):
    run_log = begin(folder)
    assert (run_log.step, run_log.loss) == (0, None)
    loss = math.nextafter(0.1, 1)
    assert run_log.add([step(1, generation=4, loss=loss)], workers=3) == [1001.0]
    (event,) = read(folder)
    assert event == {
        "event": "step",
        "time": 1001.0,
        "step": 1,
        "loss": loss,
        "loss_hex": loss.hex(),
        "generation": 4,
        "workers": 3,
        "busy_seconds": 0.5,
    }
    assert (run_log.step, run_log.loss, run_log.device_seconds) == (1, loss, 0.5)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), max_size=15))
def test_every_step_is_written_once_and_in_order_however_it_is_reported(tmp_path_factory, told):
    folder = tmp_path_factory.mktemp("told")
    run_log = begin(folder)
    reached = 0
    for first, count in told:  # a worker reports some steps, known, new, or too far ahead
        run_log.add([step(number) for number in range(first, first + count)], 2)
        if first <= reached + 1:
            reached = max(reached, first + count - 1)
        assert run_log.step == reached
    assert steps_in(folder) == list(range(1, reached + 1))
    assert run_log.device_seconds == 0.5 * reached


def test_a_gap_is_filled_before_later_steps_are_written(folder):
    run_log = begin(folder)
    run_log.add([step(1), step(2)], 2)
    assert run_log.add([step(5), step(6)], 2) == [1005.0, 1006.0]  # there was progress
    assert (run_log.step, steps_in(folder)) == (2, [1, 2])
    run_log.add([step(number) for number in range(3, 7)], 2)
    assert steps_in(folder) == [1, 2, 3, 4, 5, 6]


def test_a_step_reported_again_with_the_same_loss_is_not_written_again(folder):
    run_log = begin(folder)
    run_log.add([step(1), step(2)], 2)
    assert run_log.add([step(1, generation=2), step(2, generation=2)], 2) == [1001.0, 1002.0]
    assert steps_in(folder) == [1, 2]


def test_a_step_reported_again_with_another_bit_is_a_divergence(folder):
    run_log = begin(folder)
    run_log.add([step(1), step(2), step(3)], 2)
    other = math.nextafter(loss_of(2), 1)
    with pytest.raises(DivergenceError) as found:
        run_log.add([step(2, loss=other)], 2)
    for part in ("step 2", other.hex(), loss_of(2).hex(), "not reproducible"):
        assert part in str(found.value)


def test_steps_reported_together_with_a_divergence_are_written(folder):
    run_log = begin(folder)
    run_log.add([step(1)], 2)
    with pytest.raises(DivergenceError):
        run_log.add([step(2), step(3), step(1, loss=9.0)], 2)
    assert steps_in(folder) == [1, 2, 3]
    assert run_log.step == 3


def test_a_resumed_run_writes_the_steps_after_its_checkpoint(folder):
    run_log = begin(folder, first=7)
    run_log.add([step(6, loss=9.0), step(7, loss=9.0), step(8)], 2)  # not ours to compare
    assert steps_in(folder) == [8]
    with pytest.raises(DivergenceError):
        run_log.add([step(8, loss=9.0)], 2)


def test_a_torn_line_of_the_run_before_is_closed(folder):
    (folder / FILE_NAME).write_text('{"event": "step", "step": 1, "lo')
    run_log = begin(folder)
    run_log.add([step(1), step(2)], 2)
    assert steps_in(folder) == [1, 2]


# -- evaluations


def test_an_evaluation_is_written_once_after_its_step(folder):
    run_log = begin(folder)
    assert run_log.evaluated_step == -1
    run_log.add([step(1), evaluation(1, 0.25), step(2), evaluation(2, 0.75)], 2)
    run_log.add([evaluation(2, 0.75), evaluation(1, 0.25)], 2)
    assert [(event["event"], event["step"]) for event in read(folder)] == [
        ("step", 1),
        ("evaluate", 1),
        ("step", 2),
        ("evaluate", 2),
    ]
    assert run_log.metrics == {"accuracy": 0.75}
    assert run_log.evaluated_step == 2


def test_an_evaluation_is_not_a_commit(folder):
    run_log = begin(folder)
    assert run_log.add([evaluation(0), step(1), evaluation(1)], 2) == [1001.0]
    assert run_log.step == 1


# -- generations


def test_a_generation_is_written_when_it_starts(folder):
    run_log = begin(folder)
    run_log.expect(plan(1), [Cause("start")], None)
    assert read(folder) == []
    run_log.started(1, 50.0)
    run_log.started(1, 60.0)  # and once
    assert read(folder) == [
        {
            "event": "generation",
            "time": 50.0,
            "generation": 1,
            "step": 0,
            "workers": 2,
            "causes": [{"kind": "start"}],
            "pause_seconds": 0.0,
            "members": ["w0", "w1"],
            "ranks": [1, 1],
        }
    ]
    left_out = ("event", "time", "members", "ranks")
    entry = {k: v for k, v in read(folder)[0].items() if k not in left_out}
    assert run_log.generations == [entry]


@pytest.mark.parametrize(
    ("last_commit", "started", "pause"), [(100.0, 101.5, 1.5), (100.0, 99.0, 0.0)]
)
def test_a_pause_lasts_from_the_last_commit_to_the_start(folder, last_commit, started, pause):
    run_log = begin(folder)
    run_log.expect(plan(2), [Cause("lost", "w1")], last_commit)
    run_log.started(2, started)
    assert run_log.generations[0]["pause_seconds"] == pause


def test_a_step_of_an_unannounced_generation_announces_it(folder):
    run_log = begin(folder)
    run_log.expect(plan(1), [Cause("start")], None)
    run_log.add([step(1, 1)], 2)
    assert [event["event"] for event in read(folder)] == ["generation", "step"]
    assert read(folder)[0]["time"] == 1001.0


def test_steps_follow_their_own_generation(folder):
    run_log = begin(folder)
    run_log.expect(plan(1), [Cause("start")], None)
    run_log.started(1, 1000.0)
    run_log.expect(plan(2, 2), [Cause("lost", "w1")], 1002.0)
    run_log.add([step(1, 1), step(2, 1), step(3, 2)], 2)
    assert [event.get("generation") for event in read(folder)] == [1, 1, 1, 2, 2]


def test_a_generation_that_never_started_is_not_written(folder):
    run_log = begin(folder)
    run_log.expect(plan(1), [Cause("start")], None)
    run_log.expect(plan(2), [Cause("lost", "w1")], None)
    run_log.started(2, 50.0)
    run_log.started(1, 60.0)  # a late report
    assert [event["generation"] for event in read(folder)] == [2]


def test_anything_else_is_noted_with_the_time(folder):
    begin(folder).note("worker", worker="w3", state="lost", reason="gone")
    (event,) = read(folder)
    assert event.pop("time") > 1.7e9
    assert event == {"event": "worker", "worker": "w3", "state": "lost", "reason": "gone"}


# -- an existing journal, and withdrawn steps


def again(folder):
    """Return the run log of a restarted coordinator."""
    return RunLog(Journal(folder), read(folder))


def wrong(number, generation=1):
    return step(number, generation, loss=9.0)


def test_steps_in_the_journal_are_known_and_not_written_again(folder):
    run_log = begin(folder)
    run_log.expect(plan(4), [Cause("start")], None)
    run_log.add([step(1, 4), step(2, 4), evaluation(2, 0.75, 4)], 2)
    restored = again(folder)
    assert (restored.step, restored.loss) == (2, loss_of(2))
    assert (restored.evaluated_step, restored.metrics) == (2, {"accuracy": 0.75})
    assert restored.generations == run_log.generations
    assert restored.device_seconds == 1.0
    restored.add([step(2, 4), evaluation(2, 0.75, 4), step(3, 4)], 2)
    assert steps_in(folder) == [1, 2, 3]
    with pytest.raises(DivergenceError):
        restored.add([wrong(2, 4)], 2)


def test_lines_that_a_journal_has_lost_are_compared_with_nothing(folder):
    begin(folder, first=3).add([step(4)], 2)
    restored = again(folder)
    assert (restored.step, restored.loss) == (4, loss_of(4))
    restored.add([wrong(2)], 2)
    with pytest.raises(DivergenceError):
        restored.add([wrong(4)], 2)


def test_a_run_that_goes_on_differently_is_not_compared_with_the_one_before(folder):
    begin(folder).add([step(1), step(2), step(3), evaluation(3)], 2)
    Journal(folder).write("run", resumed_step=1, changes=["seed: was 1, is 2"])
    restored = again(folder)
    assert (restored.step, restored.evaluated_step, restored.device_seconds) == (1, -1, 0.0)
    assert restored.metrics == {}
    restored.add([wrong(2)], 2)


@pytest.mark.parametrize("restore", [lambda run_log, _: run_log, lambda _, f: again(f)])
def test_a_run_that_goes_on_in_another_environment_is_not_either(folder, restore):
    begin(folder).add([step(1), step(2), step(3), evaluation(3)], 2)
    Journal(folder).write("run", resumed_step=1)
    run_log = again(folder)
    assert run_log.step == 3
    run_log.computes_with({"torch": "2"}, ["environment: torch is 2, before it was 1"])
    run_log = restore(run_log, folder)
    assert (run_log.step, run_log.environment) == (1, {"torch": "2"})
    assert not run_log.bitwise
    run_log.add([wrong(2)], 2)
    Journal(folder).write("run", resumed_step=2)
    assert again(folder).environment == {}  # until a worker has started
    assert not again(folder).bitwise  # what was computed with other bits stays in the state


def test_a_run_with_a_worker_of_other_bits_is_never_bitwise_again(folder):
    run_log = begin(folder)
    run_log.note("worker", worker="w0", state="ready")
    assert again(folder).bitwise  # the control
    run_log.note("worker", worker="w1", state="admitted")
    Journal(folder).write("run", resumed_step=1)
    assert not again(folder).bitwise


def test_a_run_that_goes_on_the_same_is(folder):
    begin(folder).add([step(1), step(2)], 2)
    Journal(folder).write("run", resumed_step=1)
    with pytest.raises(DivergenceError):
        again(folder).add([wrong(2)], 2)


@pytest.mark.parametrize("restore", [lambda run_log, _: run_log, lambda _, f: again(f)])
def test_steps_that_are_withdrawn_are_computed_again_to_other_losses(folder, restore):
    run_log = begin(folder)
    run_log.add([step(1), step(2), wrong(3), wrong(4), evaluation(4)], 2)
    run_log.withdraw(2, "corruption", generation=1)
    run_log = restore(run_log, folder)
    assert (run_log.step, run_log.loss, run_log.evaluated_step) == (2, loss_of(2), -1)
    assert run_log.metrics == {}
    run_log.add([step(3, generation=2)], 2)
    run_log = restore(run_log, folder)
    assert (run_log.step, run_log.loss) == (3, loss_of(3))
    assert steps_in(folder) == [1, 2, 3, 4, 3]
    with pytest.raises(DivergenceError):  # steps that still count are compared as usual
        run_log.add([wrong(2, generation=2)], 2)


def test_late_reports_of_withdrawn_steps_are_ignored(folder):
    run_log = begin(folder)
    run_log.add([step(1), step(2), wrong(3)], 2)
    run_log.withdraw(2, "corruption", generation=1)
    assert run_log.add([step(2), wrong(3), wrong(4)], 2) == [1002.0]
    assert run_log.step == 2
    run_log.add([step(3, generation=2), wrong(3)], 2)
    assert run_log.loss == loss_of(3)
    assert [run_log.is_void(1, 2), run_log.is_void(1, 3), run_log.is_void(2, 3)] == [
        False,
        True,
        False,
    ]


def test_the_values_at_a_step_are_known_also_if_later_steps_are(folder):
    run_log = begin(folder)
    run_log.add([step(1), evaluation(1, 0.25), step(2), step(3), evaluation(3, 0.75)], 2)
    run_log = again(folder)
    assert [run_log.loss_at(n) for n in range(5)] == [None, *map(loss_of, (1, 2, 3)), None]
    assert [run_log.metrics_at(n).get("accuracy") for n in range(4)] == [None, 0.25, 0.25, 0.75]


def test_a_run_that_goes_on_differently_is_evaluated_where_it_begins(folder):
    begin(folder).add([step(1), evaluation(1, 0.25), step(2), evaluation(2, 0.5)], 2)
    Journal(folder).write("run", resumed_step=2, changes=["evaluation data: was a, is b"])
    assert (again(folder).evaluated_step, again(folder).metrics) == (1, {"accuracy": 0.25})
    # The control: a run that goes on the same is not evaluated there.
    Journal(folder).write("run", resumed_step=1)
    assert again(folder).evaluated_step == 1


def test_logged_scalars_are_written_and_known_after_a_restart(folder):
    run_log = begin(folder)
    told = [replace(step(1), logged={"a": 0.1, "b": math.nan}), replace(step(2), logged={"a": 0.2})]
    run_log.add([*told, replace(step(3), logged={"b": -math.inf})], workers=2)
    events = read(folder)
    assert [event.get("logged") for event in events if event["event"] == "step"] == [
        {"a": 0.1, "b": "nan"},
        {"a": 0.2},
        {"b": "-inf"},
    ]
    (warning,) = [event["text"] for event in events if event["event"] == "warning"]
    assert "'b' is nan at step 1" in warning
    again = RunLog(Journal(folder), events)
    assert again.logged == run_log.logged == {"a": 0.2, "b": -math.inf}


def test_an_evaluation_waits_for_the_steps_before_it(folder):
    run_log = begin(folder)
    run_log.add([step(1)], 2)
    run_log.add([evaluation(3)], 2)  # reported by a worker whose earlier report was lost
    assert run_log.evaluated_step < 3
    run_log.add([step(2), evaluation(2), step(3), evaluation(3)], 2)
    told = [e["step"] for e in read(folder) if e["event"] == "evaluate"]
    assert told == [2, 3]


def test_the_journal_says_which_steps_it_lacks(folder):
    run_log = begin(folder)
    run_log.add([step(1)], 2)
    run_log.extend_to(1)
    assert [e for e in read(folder) if e["event"] == "warning"] == []  # the control
    run_log.extend_to(4)
    run_log.extend_to(4)
    (warning,) = (e for e in read(folder) if e["event"] == "warning")
    assert "lacks steps 2 to 4" in warning["text"]
