"""The judges of disturbed runs notice each broken promise. (Made-up runs, without Ray.)"""

import os

import pytest

from tests.chaos.made_up_run import KILL, healthy, worker
from tests.end_to_end import runs
from tests.end_to_end.runs import Run, Witness, differences, flaws


def run_of_two():
    """Return a run without a flaw."""
    return Run(events=healthy(), summary={"faults_left": 0, "bitwise": True})


def test_a_healthy_run_has_no_flaws():
    assert flaws(run_of_two(), [KILL]) == []
    assert differences(run_of_two(), run_of_two()) == []


@pytest.mark.parametrize(
    ("event", "key", "value", "what"),
    [
        (5, "loss_hex", "0x1.8000000000001p+1", "'what': 'loss'"),
        (14, "metrics", {"accuracy": 0.51}, "'what': 'metric accuracy'"),
        (15, "digest", "d2", "'what': 'digest'"),
    ],
)
def test_a_difference_in_loss_metrics_or_digest_is_noticed(event, key, value, what):
    run = run_of_two()
    run.events[event][key] = value
    (found,) = differences(run, run_of_two())
    assert what in found


def test_a_run_that_failed_or_is_not_bitwise_is_noticed():
    failed, other = run_of_two(), run_of_two()
    failed.error = "no"
    other.summary["bitwise"] = False
    assert differences(failed, run_of_two())
    assert differences(other, run_of_two())


def test_a_process_replaced_without_the_runs_knowledge_is_noticed():
    run = run_of_two()
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
