"""The agent: what it reports to Ray, and when it ends, with a fake head, raylet and sources."""

import os
import queue
import signal
import socket
import subprocess
import sys
import time

import pytest

from raytrain_plus.nodes import agent, local_node
from raytrain_plus.nodes.agent import Agent
from raytrain_plus.nodes.notices import Notice
from raytrain_plus.ray_cluster.gcs import ClusterError, Node, UnreachableError

ID = "ab" * 28


class Head:
    """The parts of Ray's head that the agent calls.

    Attributes:
        drained: the drain requests, as (node, reason, seconds left).
        failures: how many calls of each kind fail.
    """

    address = "10.0.0.1:6379"

    def __init__(self, nodes, failures=0):
        self._nodes = nodes
        self.failures = failures
        self.drained = []
        self.on_drain = lambda: None

    def nodes(self):
        self._fail()
        return self._nodes

    def drain(self, node_id, reason, deadline):
        self._fail()
        self.drained.append((node_id, reason, deadline - time.time()))
        self.on_drain()

    def _fail(self):
        if self.failures:
            self.failures -= 1
            raise UnreachableError("no server listens")


class Told:
    """A source that gives the notices, errors or empty answers of a test."""

    name = "the cloud"
    pause = 0.0

    def __init__(self, *said):
        self._said = queue.SimpleQueue()
        for one in said:
            self._said.put(one)

    def look(self):
        one = self._said.get()  # a source without notices left stalls
        if isinstance(one, Exception):
            raise one
        return one


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(agent, "_LOOK", 0.02)
    monkeypatch.setattr(agent, "_LONGEST_PAUSE", 0.02)


@pytest.fixture
def raylet():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def node(raylet):
    return Node(ID, "host", "127.0.0.1", raylet.getsockname()[1], alive=True, is_head=False)


def run(head, *sources, node_id=ID, patience=0.0, grace=30.0):
    lines = []
    Agent(head, sources, lines.append).run(node_id, grace, patience)
    return lines


def test_a_notice_drains_the_node_until_its_deadline(node, raylet):
    head = Head([node])
    head.on_drain = raylet.close
    lines = run(head, Told(None, Notice("the price went up", time.time() + 100)))
    [(drained, reason, left)] = head.drained
    assert (drained, reason, left) == (ID, "the price went up", pytest.approx(100, abs=5))
    assert [line.split()[0] for line in lines] == ["watches", "drains", "ends:"]
    assert "the price went up" in lines[1]


def test_no_notice_drains_nothing(node, raylet):
    """The negative control. The agent ends when its node is gone."""
    head = Head([node])
    source = Told(None)
    look = source.look

    def last():
        raylet.close()
        return look()

    source.look = last
    assert "has gone" in run(head, source)[-1]
    assert head.drained == []


def test_only_an_earlier_deadline_is_reported_again(node, raylet):
    head = Head([node])
    now = time.time()
    likely, sure = Notice("likely", now + 600), Notice("sure", now + 120)
    head.on_drain = lambda: len(head.drained) == 2 and raylet.close()
    run(head, Told(likely, likely, sure, sure, likely))
    assert [reason for _, reason, _ in head.drained][-1] == "sure"
    assert len(head.drained) <= 2  # of two notices at once, the earlier deadline is enough


def test_a_notice_reaches_an_unavailable_head_when_it_is_back(node, raylet):
    head = Head([node])
    nodes = head.nodes

    def away():
        found = nodes()
        head.failures = 3
        return found

    head.nodes = away
    head.on_drain = raylet.close
    lines = run(head, Told(Notice("gone soon", time.time() + 100)))
    assert [reason for _, reason, _ in head.drained] == ["gone soon"]
    assert head.failures == 0
    assert sum("cannot drain" in line for line in lines) == 1


def test_a_failing_source_is_reported_once_and_asked_again(node, raylet):
    head = Head([node])
    head.on_drain = raylet.close
    errors = [OSError("stalled"), OSError("stalled"), ValueError("odd")]
    lines = run(head, Told(*errors, None, Notice("x", time.time() + 9)))
    assert sum("does not answer as it should: stalled" in line for line in lines) == 1
    assert sum("answers again" in line for line in lines) == 1
    assert len(head.drained) == 1


def test_a_stalled_source_does_not_delay_another(node, raylet):
    head = Head([node])
    head.on_drain = raylet.close
    run(head, Told(), Told(Notice("x", time.time() + 9)))
    assert len(head.drained) == 1


def test_sigterm_drains_the_node_and_ends_the_agent(node, raylet):  # noqa: ARG001
    head = Head([node])

    class Terminating(Told):
        def look(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().look()

    before = signal.getsignal(signal.SIGTERM)
    lines = run(head, Terminating(), grace=42.0)
    [(_, reason, left)] = head.drained
    assert "terminate" in reason
    assert left == pytest.approx(42, abs=5)
    assert lines[-1] == "ends on request"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_agent_waits_for_its_node_to_join_and_for_the_head_to_start(node, raylet):
    raylet.close()
    assert "has gone" in run(Head([node], failures=3), patience=30.0)[-1]
    with pytest.raises(ClusterError, match="no server listens"):
        run(Head([node], failures=3))
    with pytest.raises(ClusterError, match=f"no node {ID} has joined"):
        run(Head([]))


def test_the_node_of_this_host_is_found_by_its_address(node):
    elsewhere = Node("cd" * 28, "other", "203.0.113.9", 1, alive=True, is_head=True)
    dead = Node("ef" * 28, "host", "127.0.0.1", 1, alive=False, is_head=False)
    assert local_node.node_here([elsewhere, dead, node]) is node
    assert local_node.node_here([elsewhere, dead]) is None
    with pytest.raises(ClusterError, match=f"2 nodes on this host.*{ID}"):
        local_node.node_here([node, node])


def test_a_node_has_one_agent(node):
    assert not local_node.has_agent(ID)
    with local_node.claim(ID):
        assert local_node.has_agent(ID)
        with pytest.raises(ClusterError, match="has an agent already"):
            run(Head([node]))
    assert not local_node.has_agent(ID)


def test_its_command_needs_neither_torch_nor_the_trainer():
    code = (
        "import sys, raytrain_plus.cli.node_agent\n"
        "print(sorted({'torch', 'pandas', 'pyarrow', 'raytrain_plus.trainer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--address", "127.0.0.1:1", "--wait", "0"], 1, ["no server listens at 127.0.0.1:1"]),
        (["--address", "head"], 1, ["'head' is not HOST:PORT"]),
        (["--metadata-url", "ftp://x"], 2, ["'ftp://x' does not begin with http://"]),
    ],
)
def test_its_command_says_what_is_wrong_in_one_line(options, status, words):
    line = [sys.executable, "-m", "raytrain_plus", "node-agent", "--provider", "none", *options]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words)
