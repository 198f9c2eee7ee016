"""The judges of disturbed runs: each promise that is broken is noticed. (Without Ray: made up.)"""

import copy
import os

import pytest

from raytrain_plus import Fault
from tests.end_to_end import runs
from tests.end_to_end.runs import Run, Witness, differences, flaws

KILL = Fault(step=4, action="kill", phase="backward", victim=1)


def generation(number, step, *members):
    return {
        "event": "generation",
        "generation": number,
        "step": step,
        "workers": len(members),
        "members": list(members),
    }


def step(number, workers):
    return {"event": "step", "step": number, "loss_hex": float(number).hex(), "workers": workers}


def worker(name, state):
    return {"event": "worker", "worker": name, "state": state, "pid": os.getpid()}


def healthy():
    """Return a run of six steps whose second worker is killed in the fourth, and replaced."""
    return Run(
        events=[
            worker("w0", "ready"),
            worker("w1", "ready"),
            generation(1, 0, "w0", "w1"),
            *(step(n, 2) for n in (1, 2, 3)),
            worker("w1", "lost"),
            {"event": "fault", "step": 4, "action": "kill", "phase": "backward", "hit": ["w1"]},
            generation(2, 3, "w0"),
            step(4, 1),
            worker("w2", "ready"),
            generation(3, 4, "w0", "w2"),
            *(step(n, 2) for n in (5, 6)),
            {"event": "evaluate", "step": 6, "metrics": {"accuracy": 0.5}},
            {"event": "end", "digest": "d1"},
        ],
        summary={"faults_left": 0, "bitwise": True},
    )


def test_a_healthy_run_has_no_flaws():
    assert flaws(healthy(), [KILL]) == []
    assert differences(healthy(), healthy()) == []


@pytest.mark.parametrize(
    ("event", "key", "value", "what"),
    [
        (5, "loss_hex", "0x1.8000000000001p+1", "'what': 'loss'"),
        (14, "metrics", {"accuracy": 0.51}, "'what': 'metric accuracy'"),
        (15, "digest", "d2", "'what': 'digest'"),
    ],
)
def test_a_difference_in_loss_metrics_or_digest_is_noticed(event, key, value, what):
    run = healthy()
    run.events[event][key] = value
    (found,) = differences(run, healthy())
    assert what in found


def test_a_run_that_failed_or_is_not_bitwise_is_noticed():
    failed, other = healthy(), healthy()
    failed.error = "no"
    other.summary["bitwise"] = False
    assert differences(failed, healthy())
    assert differences(other, healthy())


def test_a_step_that_is_missing_or_there_twice_is_noticed():
    missing, twice = healthy(), healthy()
    del missing.events[9]
    twice.events.insert(9, copy.deepcopy(twice.events[9]))
    assert "missing" in flaws(missing, [KILL])[0]
    assert "twice" in flaws(twice, [KILL])[0]


def test_a_committed_step_that_is_lost_is_noticed_unless_nobody_survived():
    run = healthy()
    run.events[8] = generation(2, 1, "w0")
    assert "survived step 3, and it went on at 1" in flaws(run, [KILL])[0]
    run.events[7]["hit"] = ["w0", "w1"]
    run.events.insert(6, worker("w0", "lost"))
    assert flaws(run, [KILL]) == []


def test_a_survivor_that_is_left_out_is_noticed_unless_it_drains():
    run = healthy()
    run.events[11]["members"] = ["w2"]
    assert "{'w0'} survived, but ['w2'] went on" in flaws(run, [KILL])[0]
    run.events.insert(10, worker("w0", "draining"))
    assert flaws(run, [KILL]) == []


def test_a_worker_that_was_lost_without_a_fault_is_noticed():
    run = healthy()
    run.events[7]["hit"] = []
    assert "no fault had hit: ['w1']" in flaws(run, [KILL])[0]


def test_a_process_that_was_replaced_behind_the_runs_back_is_noticed():
    run = healthy()
    run.changed = {"w0"}
    assert "changed: ['w0']" in flaws(run, [KILL])[0]


def test_the_witness_sees_a_process_end_or_become_another(monkeypatch):
    began = {os.getpid(): "1"}
    monkeypatch.setattr(runs, "_began", lambda pid: began[pid])
    witness = Witness()
    witness([worker("w0", "ready")])
    witness([])
    assert witness.changed == set()
    began[os.getpid()] = "2"
    witness([])
    assert witness.changed == {"w0"}


def test_a_fault_that_did_not_happen_is_noticed():
    never = Fault(step=5, action="kill", phase="gather")
    assert "did not happen: kill in gather at step 5" in flaws(healthy(), [KILL, never])[0]


def test_a_strike_on_a_group_that_forms_again_may_miss_one_that_began_anew():
    never = Fault(step=4, action="stop", phase="heal")
    assert "did not happen: stop in heal at step 4" in flaws(healthy(), [KILL, never])[0]
    anew = healthy()
    gone = {"event": "worker", "state": "lost", "reason": ""}
    everybody = {e["worker"] for e in anew.events if e["event"] == "worker"}
    anew.events += [{**gone, "worker": name} for name in sorted(everybody)]
    anew.events.append(generation(9, 0, "w9"))
    assert not [flaw for flaw in flaws(anew, [KILL, never]) if "did not happen" in flaw]
