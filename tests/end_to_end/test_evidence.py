"""The judges of disturbed runs: each promise that is broken is noticed. (Without Ray: made up.)"""

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
