"""Two journals are compared by the results that count, not by withdrawn ones."""

import pytest

from raytrain_plus.observe.verify import compare


def steps(first, last, by=1.0):
    return [
        {"event": "step", "step": n, "loss": by / n, "loss_hex": (by / n).hex()}
        for n in range(first, last + 1)
    ]


def evaluation(step, accuracy):
    return {"event": "evaluate", "step": step, "metrics": {"accuracy": accuracy}}


RUN = {"event": "run"}
END = {"event": "end", "digest": "d"}
SHORT = [RUN, *steps(1, 4), evaluation(4, 0.5), END]
LONG = [RUN, *steps(1, 6), evaluation(6, 0.75), {"event": "end", "digest": "other"}]


@pytest.mark.parametrize(
    "resumed",
    [
        [{"event": "run", "resumed_step": 3, "changes": ["total_steps: was 6, is 4"]}],
        [{"event": "run", "resumed_step": 3}, {"event": "environment", "changes": ["torch"]}],
    ],
)
def test_steps_of_a_longer_run_before_a_changed_resume_do_not_count(resumed):
    again = [*LONG, *resumed, *steps(4, 4), evaluation(4, 0.5), END]
    assert compare(SHORT, again).equal
    # The control: without the resume the runs differ.
    assert not compare(SHORT, LONG).equal


def test_withdrawn_results_do_not_count():
    wrong = [*steps(3, 5, by=2.0), evaluation(5, 0.1), {"event": "withdrawn", "step": 2}]
    again = [RUN, *steps(1, 2), *wrong, *steps(3, 4), evaluation(4, 0.5), END]
    assert compare(SHORT, again).equal
    assert compare(SHORT, [e for e in again if e["event"] != "withdrawn"]).equal is False


def test_results_before_a_resume_without_changes_still_count():
    again = [RUN, *steps(1, 4), evaluation(4, 0.5), {"event": "run", "resumed_step": 2}, END]
    assert compare(SHORT, again).equal
