"""A host loses its power, another its cable: the others go on, and the bits stay the same.

`python -m benchmarks.node_loss` measures the times; the bounds here are for a busy machine.
"""

import contextlib

import pytest

from cluster.lab.hosts import Lab, why_not
from cluster.lab.names import LabError
from raytrain_plus.chaos.flaws import lost_steps
from raytrain_plus.observe import journal
from tests.end_to_end import lab_run
from tests.end_to_end.lab_driver import LOGICAL_RANKS, NAME, STEPS
from tests.end_to_end.runs import Run, differences, program, undisturbed
from tests.end_to_end.tasks import Plain
from tests.expected import require

pytestmark = pytest.mark.timeout(900)

POWER_OFF, CABLE_PULL = 10.0, 30.0  # seconds


@pytest.fixture
def folder(request):
    require("lab", why_not())
    storage = request.getfixturevalue("storage")
    yield storage
    with contextlib.suppress(LabError):  # the folder is there only if the program was killed
        Lab(storage / lab_run.LAB).down()


@pytest.mark.slow
def test_power_off_and_a_pulled_cable_cost_no_step(folder):
    told = program(lab_run.__name__, folder)
    run = Run(journal.read(folder / NAME), told["summary"], told["error"])
    assert differences(run, undisturbed(Plain, LOGICAL_RANKS, STEPS)) == []
    assert [event["step"] for event in run.of("step")] == list(range(1, STEPS + 1))
    assert lost_steps(run.events) == []
    # The coordinator was with the driver, on the undisturbed host.
    assert run.of("coordinator_restart") == []
    # Each event ended one worker, that of its host; the others went on in their processes.
    assert [event["workers"] for event in run.of("generation")] == [3, 2, 1]
    nodes = {event["worker"]: event["node"] for event in run.of("worker", state="ready")}
    assert len(nodes) == len(run.of("worker", state="ready")) == 3
    for happened, lost in zip(
        (told["power_off"], told["cable_pull"]), run.of("worker", state="lost"), strict=True
    ):
        assert nodes[lost["worker"]] == told["nodes"][happened["host"]]
        assert lost["time"] > happened["at"]
    assert told["power_off"]["seconds"] < POWER_OFF
    assert told["cable_pull"]["seconds"] < CABLE_PULL
