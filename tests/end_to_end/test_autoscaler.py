"""An autoscaler sees what a run wants: nodes come for it, and go when it has ended."""

import contextlib

import pytest

from cluster.lab.hosts import Lab, why_not
from cluster.lab.names import LabError
from raytrain_plus.observe import journal
from tests.end_to_end import autoscaled
from tests.end_to_end.autoscaled import ADDED, LOGICAL_RANKS, MOST, NAME, STEPS
from tests.end_to_end.runs import Run, differences, program, undisturbed
from tests.end_to_end.tasks import Plain
from tests.expected import require


@pytest.fixture
def folder(request):
    require("lab", why_not())
    storage = request.getfixturevalue("storage")
    yield storage
    with contextlib.suppress(LabError):  # there is one only if the program was killed
        Lab(storage / "hosts").down()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nodes_come_for_a_run_that_grows_and_go_when_it_has_ended(folder):
    told = program(autoscaled.__name__, folder)
    run = Run(journal.read(folder / NAME), told["summary"], told["error"])
    assert differences(run, undisturbed(Plain, LOGICAL_RANKS, STEPS)) == []
    # A run that wants one worker makes nobody start a node: the control.
    assert told["nodes"] == {"before": 1, "alone": 1, "most": 1 + ADDED, "after": 1}
    # It had its maximum before it ended, a worker on each node, however soon each came.
    assert run.of("generation")[-1]["workers"] == MOST
    assert len({event["node"] for event in run.of("worker", state="ready")}) == MOST
    assert run.of("worker", state="lost") == []
