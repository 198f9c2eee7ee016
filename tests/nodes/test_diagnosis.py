"""Problems of a cluster: each problem is found on its node, and a healthy node has none."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.nodes.diagnosis import Expected, NodeFacts, problems

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "numpy": "2.4.6"}
GB = 10**9


def node(number, **changes):
    well = NodeFacts(
        node_id=f"{number:056x}",
        host=f"n{number}",
        address=f"10.0.0.{number}",
        is_head=number == 0,
        versions=VERSIONS,
        hardware={"processor": "x86_64", "instruction set": "AVX2"},
        computed="a" * 64,
        cores=4,
        cpus=4.0,
        disk=(50 * GB, 100 * GB),
        shared_memory=8 * GB,
        object_store=2 * GB,
        token=True,
        agent=True,
    )
    return replace(well, **changes)


def cluster(size):
    return [node(number) for number in range(size)]


@given(st.integers(1, 9), st.booleans())
def test_a_healthy_cluster_has_no_problems(size, agents):
    nodes = [replace(one, agent=agents) for one in cluster(size)]
    addresses = tuple(one.address for one in nodes)
    assert problems(nodes, Expected()) == []
    assert problems(nodes, Expected(size, addresses)) == []


FAULTS = [
    ({"trouble": "it did not answer within 60 s"}, "did not answer", "host is up", True),
    ({"trouble": "No module named 'raytrain_plus'"}, "No module", "install", True),
    ({"versions": {**VERSIONS, "torch": "2.12.0"}}, "torch is 2.12.0, elsewhere 2.13.0", "", True),
    ({"versions": {}}, "ray is missing", "install the same ray", True),
    ({"hardware": {"processor": "x86_64", "instruction set": "AVX512"}}, "AVX512", "isa=", True),
    ({"computed": "b" * 64}, "the same computation is bbbbbbbbbbbb", "broken", True),
    ({"clock_offset": 2.0, "clock_error": 0.1}, "2.0 s ahead of", "time service", True),
    ({"clock_offset": -3.0}, "3.0 s behind", "time service", True),
    ({"disk": (4 * GB, 100 * GB)}, "4.0 GB of 100.0 GB", "make room", True),
    ({"shared_memory": GB}, "is 1.0 GB, the object store 2.0 GB", "--shm-size", False),
    ({"cpus": 8.0}, "8 CPUs of 4 cores", "--num-cpus", False),
    ({"draining": True}, "being drained", "nothing", False),
    ({"agent": False}, "no agent", "node-agent", False),
]


@pytest.mark.parametrize(("changes", "what", "do", "grave"), FAULTS)
@given(size=st.integers(3, 8), data=st.data())
def test_a_fault_is_found_on_the_node_that_has_it(changes, what, do, grave, size, data):
    number = data.draw(st.integers(0, size - 1))
    nodes = cluster(size)
    nodes[number] = replace(nodes[number], **changes)
    found = problems(nodes, Expected())
    assert {one.where for one in found} == {f"n{number}"}
    assert any(what in one.what and do in one.do for one in found)
    assert {one.grave for one in found} == {grave}


@given(st.integers(2, 9), st.data())
def test_nodes_that_have_not_joined_are_named(size, data):
    gone = data.draw(st.integers(0, size - 1))
    addresses = tuple(one.address for one in cluster(size))
    left = [one for number, one in enumerate(cluster(size)) if number != gone]
    (problem,) = problems(left, Expected(size, addresses))
    assert (problem.where, problem.what) == (addresses[gone], "has not joined")
    (problem,) = problems(left, Expected(size))
    assert problem.what == f"{size - 1} of {size} nodes have joined"
    assert problem.grave


def test_no_node_has_joined():
    assert [one.grave for one in problems([], Expected(1))] == [True]
    assert problems([], Expected()) == []


def test_of_two_nodes_that_differ_the_head_is_right():
    nodes = cluster(2)
    nodes[1] = replace(nodes[1], versions={**VERSIONS, "numpy": "2.0.0"})
    (problem,) = problems(nodes, Expected())
    assert (problem.where, problem.what) == ("n1", "numpy is 2.0.0, elsewhere 2.4.6")


def test_another_result_is_no_problem_if_versions_or_hardware_differ():
    nodes = cluster(3)
    other = {"processor": "x86_64", "instruction set": "AVX512"}
    nodes[2] = replace(nodes[2], computed="b" * 64, hardware=other)
    assert len(problems(nodes, Expected())) == 1


def test_a_clock_is_not_blamed_for_a_slow_round_trip():
    late = node(0, clock_offset=2.0, clock_error=1.5)
    assert problems([late], Expected()) == []
    assert problems([replace(late, clock_error=0.5)], Expected()) != []


def test_a_cluster_without_a_token_is_noted_once():
    nodes = [replace(one, token=False) for one in cluster(4)]
    (problem,) = problems(nodes, Expected())
    assert (problem.where, problem.grave) == ("cluster", False)


@given(st.lists(st.sampled_from(FAULTS), min_size=1, max_size=6))
def test_the_most_serious_problems_come_first(faults):
    nodes = [replace(node(number), **fault[0]) for number, fault in enumerate(faults)]
    grave = [one.grave for one in problems(nodes, Expected())]
    assert grave == sorted(grave, reverse=True)


def test_a_drained_node_has_no_other_problems():
    nodes = cluster(3)
    nodes[2] = NodeFacts("ab", host="n2", draining=True)
    (problem,) = problems(nodes, Expected(3))
    assert (problem.where, problem.what) == ("n2", "it is being drained")
