"""An autoscaler sees what a run wants: it adds nodes for the run, and removes them afterwards."""

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
    with contextlib.suppress(LabError):  # the folder is there only if the program was killed
        Lab(storage / "hosts").down()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nodes_are_added_for_a_growing_run_and_removed_when_it_has_ended(folder):
    told = program(autoscaled.__name__, folder)
    run = Run(journal.read(folder / NAME), told["summary"], told["error"])
    assert differences(run, undisturbed(Plain, LOGICAL_RANKS, STEPS)) == []
    # The control: no node is started for a run that wants one worker.
    assert told["nodes"] == {"before": 1, "alone": 1, "most": 1 + ADDED, "after": 1}
    # The run had its maximum before it ended, with one worker on each node.
    assert run.of("generation")[-1]["workers"] == MOST
    assert len({event["node"] for event in run.of("worker", state="ready")}) == MOST
    assert run.of("worker", state="lost") == []
