"""What is wrong with a cluster, from the facts of its nodes, and what to do. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CLOCK_SECONDS = 1.0  # by which a node's clock may be off
# Ray makes no more objects on a disk that is fuller (its local_fs_capacity_threshold).
DISK_PART = 0.95


@dataclass(frozen=True)
class NodeFacts:
    """A node, by Ray and by a probe on it.

    Attributes:
        node_id: Ray's id of it, in hexadecimal.
        host: its host's name.
        address: its host's address.
        is_head: it is the head.
        draining: Ray drains it, so that no probe can be placed on it.
        trouble: why the probe has no answer; empty if it has one.
        versions: of Python and the libraries that the bits depend on.
        hardware: kind of processor and instruction set, by name.
        computed: a hash of a small computation that gives the same bits on the same hardware.
        cores: that a process may use.
        cpus: that Ray may give to tasks and actors.
        clock_offset: seconds that its clock is ahead of the caller's.
        clock_error: seconds by which this may be wrong: half of a round trip.
        disk: bytes of Ray's temporary folder: free, and all.
        shared_memory: bytes of /dev/shm.
        object_store: bytes of Ray's object store.
        token: whether it asks for a token.
        agent: whether an agent waits there for the cloud's notice.
    """

    node_id: str
    host: str = ""
    address: str = ""
    is_head: bool = False
    draining: bool = False
    trouble: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    computed: str = ""
    cores: int = 0
    cpus: float = 0.0
    clock_offset: float = 0.0
    clock_error: float = 0.0
    disk: tuple[int, int] = (0, 0)
    shared_memory: int = 0
    object_store: int = 0
    token: bool = False
    agent: bool = False


@dataclass(frozen=True)
class Expected:
    """Which nodes a cluster should have.

    Attributes:
        count: how many at least, with the head; None if that is not known.
        addresses: of their hosts, where they are known.
        pitfalls: of the launch file: what is wrong, and what to do.
    """

    count: int | None = None
    addresses: tuple[str, ...] = ()
    pitfalls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, or that looks wrong.

    Attributes:
        where: the hosts, or `cluster`.
        what: what is wrong.
        do: what to do about it.
        grave: whether training will fail, or will not start on these nodes.
    """

    where: str
    what: str
    do: str
    grave: bool = True


def problems(nodes: Sequence[NodeFacts], expected: Expected) -> list[Problem]:
    """Return what is wrong, the gravest first.

    Args:
        nodes: those that are in the cluster.
        expected: those that should be.
    """
    staying = [node for node in nodes if not node.draining]
    known = [node for node in staying if not node.trouble]
    found = [
        *_missing(nodes, expected),
        *(Problem("cluster", what, do) for what, do in expected.pitfalls),
        *(_silent(node) for node in staying if node.trouble),
        *_differing(known),
        *(problem for node in known for problem in _of(node)),
        *_of_all(known),
        *(_leaving(node) for node in nodes if node.draining),
    ]
    return sorted(found, key=lambda problem: not problem.grave)


def _missing(nodes: Sequence[NodeFacts], expected: Expected) -> list[Problem]:
    do = (
        "look at `ray monitor` or the launcher's log; on the host, `ray start --address ...` says "
        "why it does not join"
    )
    joined = {name for node in nodes for name in (node.address, node.host)}
    absent = [address for address in expected.addresses if address not in joined]
    found = [Problem(address, "has not joined", do) for address in absent]
    if expected.count is not None and not absent and len(nodes) < expected.count:
        what = f"{len(nodes)} of {expected.count} nodes have joined"
        found.append(Problem("cluster", what, do))
    return found


def _silent(node: NodeFacts) -> Problem:
    if "No module named" in node.trouble:
        do = "install what the head has on every node (setup_commands of the launch file)"
    else:
        do = (
            "see whether its host is up and not out of memory; `ray list nodes` says what Ray knows"
        )
    return Problem(_name(node), node.trouble, do)


def _leaving(node: NodeFacts) -> Problem:
    do = "nothing: it will go, and Ray places nothing there any more"
    return Problem(_name(node), "it is being drained", do, grave=False)


def _differing(nodes: Sequence[NodeFacts]) -> list[Problem]:
    found = []
    for key in _keys(nodes, "versions"):
        do = f"install the same {key} on all: a worker with another is refused"
        found += _unlike(nodes, {n.node_id: n.versions.get(key, "missing") for n in nodes}, key, do)
    for key in _keys(nodes, "hardware"):
        do = "run with ElasticConfig(isa='avx2'), or with --no-bitwise, or on like machines"
        told = {n.node_id: n.hardware.get(key, "unknown") for n in nodes}
        found += _unlike(nodes, told, key, do)
    if not found:  # other versions or hardware compute other bits anyway
        do = "its processor or memory may be broken: take it out and test it"
        told = {n.node_id: n.computed for n in nodes}
        found += _unlike(nodes, told, "the same computation", do)
    return found


def _keys(nodes: Sequence[NodeFacts], of: str) -> list[str]:
    return list(dict.fromkeys(key for node in nodes for key in getattr(node, of)))


def _unlike(
    nodes: Sequence[NodeFacts], told: Mapping[str, str], key: str, do: str
) -> list[Problem]:
    """Return the nodes that differ from most of them, or from the head if there is no majority."""
    counts = Counter(told.values())
    head = next((told[node.node_id] for node in nodes if node.is_head), "")
    usual = max(counts, key=lambda value: (counts[value], value == head), default="")
    return [
        Problem(
            ", ".join(_name(node) for node in nodes if told[node.node_id] == value),
            f"{key} is {_short(value)}, elsewhere {_short(usual)}",
            do,
        )
        for value in counts
        if value != usual
    ]


def _of(node: NodeFacts) -> list[Problem]:
    name, found = _name(node), []
    if abs(node.clock_offset) - node.clock_error > CLOCK_SECONDS:
        ahead = "ahead of" if node.clock_offset > 0 else "behind"
        what = f"its clock is {abs(node.clock_offset):.1f} s {ahead} the caller's"
        do = "let a time service (chrony, systemd-timesyncd) set it: deadlines depend on it"
        found.append(Problem(name, what, do))
    free, size = node.disk
    if size and free < (1 - DISK_PART) * size:
        what = f"Ray's folder has {free / 1e9:.1f} GB of {size / 1e9:.1f} GB left"
        found.append(Problem(name, what, "make room: Ray writes nothing to a disk that full"))
    if 0 < node.shared_memory < node.object_store:
        what = (
            f"shared memory (/dev/shm) is {node.shared_memory / 1e9:.1f} GB, the object store "
            f"{node.object_store / 1e9:.1f} GB"
        )
        do = "make /dev/shm larger (--shm-size of a container): Ray uses the disk, which is slow"
        found.append(Problem(name, what, do, grave=False))
    if node.cpus > node.cores:
        what = f"Ray gives out {node.cpus:g} CPUs of {node.cores} cores"
        do = "unless that is meant, start Ray with --num-cpus of the cores that there are"
        found.append(Problem(name, what, do, grave=False))
    return found


def _of_all(nodes: Sequence[NodeFacts]) -> list[Problem]:
    found = []
    without = [node for node in nodes if not node.agent]
    if 0 < len(without) < len(nodes):
        what = "no agent waits for a preemption notice, as it does elsewhere"
        do = "start `raytrain-plus node-agent` next to `ray start`, unless it is never preempted"
        found.append(Problem(", ".join(map(_name, without)), what, do, grave=False))
    if nodes and not any(node.token for node in nodes):
        what = "it asks for no token: anyone who reaches its ports can run code there"
        do = (
            "set RAY_AUTH_MODE=token on all hosts, with one token (`ray get-auth-token --generate`)"
        )
        found.append(Problem("cluster", what, do, grave=False))
    return found


def _name(node: NodeFacts) -> str:
    return node.host or node.address or node.node_id[:12]


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value or "nothing"
