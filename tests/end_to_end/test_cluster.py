"""From `ray up` to `ray down`, from a laptop, while hosts come and go: no bit changes."""

import contextlib
import re

import pytest

from cluster.lab import ssh
from cluster.lab.hosts import Lab, why_not
from cluster.lab.names import LabError
from raytrain_plus.chaos.flaws import lost_steps
from raytrain_plus.observe.verify import compare
from tests.end_to_end import cluster_run
from tests.end_to_end.cluster_run import ALONE, NAME
from tests.end_to_end.runs import Run, program
from tests.expected import require

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    require("lab", why_not())
    require("ssh", ssh.why_not())
    folder = tmp_path_factory.mktemp("cluster")
    yield program(cluster_run.__name__, folder)
    with contextlib.suppress(LabError):  # the folder is there only if the program was killed
        Lab(folder / cluster_run.LAB).down()


def test_a_run_on_hosts_that_come_and_go_has_the_bits_of_one_on_a_single_worker(told):
    disturbed, alone = (told["events"][name] for name in (NAME, ALONE))
    found = compare(alone, disturbed)
    assert found.equal, found.first_difference
    assert found.steps == len([e for e in alone if e["event"] == "step"]) > 400
    run = Run(disturbed)
    assert lost_steps(run.events) == []
    # One worker alone; one on each host; a host without power, a late one, and one that drained.
    assert {event["workers"] for event in alone if event["event"] == "generation"} == {1}
    sizes = [event["workers"] for event in run.of("generation")]
    assert sizes[sizes.index(3) :] == [3, 2, 3, 2]  # they need not all be there at the start
    assert [e["worker"] for e in run.of("worker", state="lost")] != []
    assert [e["worker"] for e in run.of("worker", state="left")] != []


def test_the_laptop_sees_the_status_of_the_run(told):
    assert told["status"]["run"] == NAME
    assert 0 < told["status"]["step"] < told["status"]["total_steps"]


def test_nothing_is_left_when_the_cluster_is_taken_down(told):
    # The control. The processes on the drained host had ended before, since they had no work left.
    assert {"head", "n3"} <= set(told["processes"]["before"])
    assert told["processes"]["after"] == {}


def test_only_three_lines_of_the_launch_file_are_filled_in():
    text = "head_ip: a\nworker_ips: [b]\nssh_user: c\nother: d\n"
    known = {"head": "1", "n1": "2", "n2": "3"}
    filled = cluster_run.filled(text, known)
    assert filled == 'head_ip: 1\nworker_ips: ["2", "3"]\nssh_user: root\nother: d\n'
    with pytest.raises(RuntimeError, match=re.escape("0 lines of ssh_user")):
        cluster_run.filled(text.replace("ssh_user", "user"), known)
