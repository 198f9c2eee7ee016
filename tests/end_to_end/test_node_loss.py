"""A host loses its power, another its cable: those that are left go on, and the bits stay.

The figures are for `python -m benchmarks.node_loss`; here the bounds leave room for a busy machine.
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

pytestmark = pytest.mark.timeout(400)

POWER_OFF, CABLE_PULL = 10.0, 30.0  # seconds


@pytest.fixture
def folder(request):
    require("lab", why_not())
    storage = request.getfixturevalue("storage")
    yield storage
    with contextlib.suppress(LabError):  # there is one only if the program was killed
        Lab(storage / lab_run.LAB).down()


@pytest.mark.slow
def test_power_off_and_a_pulled_cable_cost_no_step(folder):
    told = program(lab_run.__name__, folder)
    run = Run(journal.read(folder / NAME), told["summary"], told["error"])
    assert differences(run, undisturbed(Plain, LOGICAL_RANKS, STEPS)) == []
    assert [event["step"] for event in run.of("step")] == list(range(1, STEPS + 1))
    assert lost_steps(run.events) == []
    # The coordinator was where the driver is, on the host to which nothing happened.
    assert run.of("returned") == []
    # Each event took one worker, that of its host; the others went on in the processes they had.
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
