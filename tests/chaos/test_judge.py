"""A difference is blamed on the schedule in whose steps it starts."""

import pytest

from raytrain_plus.chaos.campaign import Campaign, hang_deadline, start_timeout
from raytrain_plus.chaos.judge import Act, ended_by_gradient, judge
from raytrain_plus.chaos.schedules import Schedule
from raytrain_plus.elastic.protocol.faults import Fault

STEPS = 10


def act(number):
    fault = Fault(step=number * STEPS + 5, action="kill")
    return Act(
        seed=number,
        first=number * STEPS + 1,
        last=(number + 1) * STEPS,
        schedule=Schedule((fault,), {}),
    )


ACTS = [act(0), act(1), act(2)]


def journal(changed=None, upto=30, digest="d", struck=(5, 15, 25)):
    """Return the journal of a run, with another loss from a step on."""
    losses = {s: float(s) + (s == changed) for s in range(1, upto + 1)}
    steps = [{"event": "step", "step": s, "loss_hex": x.hex()} for s, x in losses.items()]
    faults = [
        {"event": "fault", "step": s, "action": "kill", "phase": "backward", "hit": ["w0"]}
        for s in struck
    ]
    return [*steps, *faults, {"event": "end", "digest": digest}]


def states(**run):
    error = run.pop("error", "")
    return [v.state for v in judge(ACTS, journal(), journal(**run), error)]


def test_runs_without_a_difference_are_equal():
    verdicts = judge(ACTS, journal(), journal())
    assert [(v.state, v.act.seed) for v in verdicts] == [("equal", n) for n in range(3)]
    assert not any(verdict.not_struck or verdict.reason for verdict in verdicts)


@pytest.mark.parametrize(("changed", "n"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3), (30, 3)])
def test_a_difference_is_blamed_on_the_schedule_in_which_it_starts(changed, n):
    verdicts = judge(ACTS, journal(), journal(changed=changed))
    assert [v.state for v in verdicts] == ["equal"] * (n - 1) + ["differs"]
    assert f"loss at step {changed} is" in verdicts[-1].reason


def test_a_difference_of_the_final_state_only_is_blamed_on_the_last_schedule():
    verdicts = judge(ACTS, journal(), journal(digest="other"))
    assert [v.state for v in verdicts] == ["equal", "equal", "differs"]
    assert verdicts[-1].reason == "digest at the end is other, undisturbed d"


def test_a_failed_run_is_judged_in_the_same_way():
    assert states(upto=14, digest="", error="no worker came") == ["equal", "failed"]
    assert states(digest="", error="no worker came") == ["equal", "equal", "failed"]


def test_a_difference_before_the_judged_schedules_is_blamed_on_the_first():
    """They are judged again without the earlier schedule, and the task itself may be the cause."""
    verdicts = judge(ACTS[1:], journal(), journal(changed=3))
    assert [(v.act.seed, v.state) for v in verdicts] == [(1, "differs")]


def test_a_fault_that_hit_no_worker_is_reported_and_is_not_a_failure():
    verdicts = judge(ACTS, journal(), journal(struck=(5, 25)))
    assert [v.state for v in verdicts] == ["equal"] * 3
    assert [v.not_struck for v in verdicts] == [(), ACTS[1].schedule.faults, ()]


def test_faults_before_a_resume_count_as_happened():
    events = journal()
    events.insert(-1, {"event": "run"})
    assert not any(verdict.not_struck for verdict in judge(ACTS, journal(), events))


TOLD = "GradientError: the gradient of parameter '0.weight' is not finite at step 5, though ..."


@pytest.mark.parametrize(
    ("events", "error", "by_design"),
    [
        ([{"event": "run"}, {"event": "fault", "action": "nan_gradient"}], TOLD, True),
        ([{"event": "run"}, {"event": "fault", "action": "kill"}], TOLD, False),
        ([{"event": "run"}, {"event": "fault", "action": "nan_gradient"}], "no worker came", False),
        ([{"event": "run"}, {"event": "fault", "action": "nan_gradient"}], "", False),
        ([{"event": "fault", "action": "nan_gradient"}, {"event": "run"}], TOLD, False),
    ],
)
def test_only_an_injected_gradient_ends_a_run_by_design(events, error, by_design):
    assert ended_by_gradient(events, error) is by_design


def test_the_hang_deadline_is_longer_if_steps_are_long():
    def steps(seconds):
        return [{"event": "step", "time": n * seconds} for n in range(9)]

    assert hang_deadline(steps(0.1)) == 6.0
    assert hang_deadline([]) == 6.0
    assert hang_deadline(steps(10.0)) == 42.0


def test_a_newcomer_may_take_several_times_as_long_as_the_undisturbed_runs_worker():
    def run(seconds):
        return [
            {"event": "run", "time": 9.0},
            {"state": "ready", "event": "worker", "time": 9.0 + seconds},
        ]

    assert start_timeout(run(2.0)) == 30.0
    assert start_timeout([]) == 30.0
    assert start_timeout(run(20.0)) == 120.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 51}, "steps is 51; it must be even, such as 52"),
        ({"steps": 20}, "needs 22"),
        ({"runs": 0}, "runs is 0"),
        ({"workers": 0}, "a local run, with 0 workers, has none"),
        ({"workers": 9}, "9 workers cannot share 8 logical ranks"),
        ({"kinds": ("hug",)}, "no kind of fault hug"),
    ],
)
def test_an_impossible_campaign_is_refused_before_training(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        Campaign(task="nowhere:Task", storage=tmp_path, **settings)
    assert Campaign(task="nowhere:Task", storage=tmp_path).together == 12
    assert Campaign(task="nowhere:Task", storage=tmp_path, runs=2).together == 2
