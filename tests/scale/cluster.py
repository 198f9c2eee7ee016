"""The simulated cluster: workers, the network between them, and the pool a coordinator sees.

The network: each worker has a rate each way, so that many senders to one receiver queue there;
latency is drawn, and messages between two workers keep their order, as in a TCP connection.
"""

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import RayError

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.manifest import MANIFEST
from raytrain_plus.elastic.coordinator.workers import (
    PrepareReturned,
    ShareWritten,
    TrainReturned,
    WorkerLost,
    WorkerStarting,
)
from raytrain_plus.elastic.protocol.messages import Ready, Sighting, WorkerProcess
from tests.scale import worker as workers
from tests.scale.problem import digest_of


@dataclass(frozen=True)
class Network:
    """Constants of the simulated machines.

    Attributes:
        rate: bytes per second each way.
        latency: seconds, of which up to as much again is drawn.
        cpu: seconds of a worker per message, half at each end.
        control_cpu: seconds of the coordinator per control message.
        scale: bytes that stand for one byte of the small vectors.
    """

    rate: float = 1.25e9
    latency: float = 1e-4
    cpu: float = 18e-6
    control_cpu: float = 5e-6
    scale: float = 1.0


class Cluster:
    """All that is not the coordinator.

    Args:
        time: the virtual time.
        random: draws latencies and durations.
        problem: what is trained.
        spec: the run.
        network: constants.
        keeps_trace: whether events are told in full.
    """

    def __init__(self, time, random, problem, spec, network=None, *, keeps_trace=True):
        self.time, self.random, self.problem, self.spec = time, random, problem, spec
        self.network = network or Network()
        self.steps = spec.clock.total_steps
        self.evaluates = spec.clock.evaluation_due
        self.workers = {}
        self.pool = None  # of the coordinator that leads
        self.coordinator = None
        self.lines = deque(maxlen=20_000 if keeps_trace else 1_000)
        self.faults = []  # broken promises, of which there must be none
        self.kept = {}  # digest -> state
        self.add = workers.add
        self.cut = set()  # (sender, receiver) whose messages wait; "coordinator" is one, too
        self.held = []
        self.nodes = 4
        self.repeats = 0.0  # how likely a control message comes twice
        self.slow_start = 2.0
        self.fails_to_start = 0.0
        self._out, self._in, self._last = {}, {}, {}
        self.draining = set()
        self.begun = {}  # generation -> when its first worker formed

    def trace(self, text):
        self.lines.append((self.time.now, text))

    def fault(self, text):
        self.trace("BROKEN: " + text)
        self.faults.append(text)

    # -- constants of workers

    def seconds(self, ranks):
        return 0.02 * ranks

    def slowness(self, name):
        found = self.workers.get(name)
        return found.slow if found else 1.0

    def write_seconds(self):
        return self.random.uniform(0.01, 1.0)

    def scalars(self, step):
        return {
            "step": step, "samples": step, "tokens": 0,
            "aspects": {}, "optimizer": {}, "groups": [],
        }  # fmt: skip

    def keep(self, state):
        digest = digest_of(state)
        self.kept[digest] = state.copy()
        return digest

    def load(self, place):
        path = Path(place) / MANIFEST
        if not path.exists():
            return None
        return self.kept.get(json.loads(path.read_text())["digest"])

    # -- between workers

    def carry(self, sender, receiver, frame):
        network, now = self.network, self.time.now
        size = getattr(frame[-1], "nbytes", 64) * network.scale
        rate, source = network.rate, sender.name
        out = max(self._out.get(source, 0.0), now + network.cpu / 2) + size / rate
        self._out[source] = out
        latency = network.latency * self.random.uniform(1, 2)
        into = max(self._in.get(receiver, 0.0), out + latency - size / rate) + size / rate
        self._in[receiver] = into
        at = max(self._last.get((source, receiver), 0.0), into + network.cpu / 2)
        self._last[source, receiver] = at
        self.time.after(at - now, self._deliver, source, receiver, frame)

    def _deliver(self, source, receiver, frame):
        if (source, receiver) in self.cut:
            self.held.append((source, receiver, frame))
            return
        found = self.workers.get(receiver)
        if found is not None:
            found.arrived(*frame)

    def mend(self):
        """End all partitions: what waited is delivered, in order."""
        self.cut = set()
        held, self.held = self.held, []
        for source, receiver, frame in held:
            if source == "coordinator":
                frame()
            elif receiver == "coordinator":
                self.time.after(0.0, frame)
            else:
                self._deliver(source, receiver, frame)

    # -- from workers to the coordinator

    def tell(self, name, action):
        """Bring a message to the coordinator that leads when it arrives, perhaps twice."""

        def arrive():
            if (name, "coordinator") in self.cut:
                self.held.append((name, "coordinator", arrive))
            elif self.pool is not None:
                self.time.now += self.network.control_cpu
                action(self.pool, self.coordinator)

        latency = self.network.latency * self.random.uniform(1, 3)
        key = (name, "coordinator")
        at = max(self._last.get(key, 0.0), self.time.now + latency)
        self._last[key] = at
        self.time.after(at - self.time.now, arrive)
        if self.repeats and self.random.random() < self.repeats:
            self.time.after(at - self.time.now + self.random.expovariate(2.0), arrive)

    def order(self, name, action):
        """Bring an order of the coordinator to a worker."""

        def arrive():
            if ("coordinator", name) in self.cut:
                self.held.append(("coordinator", name, arrive))
                return
            found = self.workers.get(name)
            if found is not None and found.lives and not found.hangs:
                action(found)

        key = ("coordinator", name)
        latency = self.network.latency * self.random.uniform(1, 3)
        at = max(self._last.get(key, 0.0), self.time.now + latency)
        self._last[key] = at
        self.time.after(at - self.time.now, arrive)

    def tell_steps(self, worker, generation, records):
        started, records = self.time.time(), list(records)
        moves = worker.step

        def action(_, coordinator):
            if coordinator is not None:
                coordinator.report_steps(worker.name, generation, started, moves, records)

        self.tell(worker.name, action)

    def tell_share(self, worker, share):
        if worker.lives and not worker.hangs:
            event = ShareWritten(worker.name, share)
            self.tell(worker.name, lambda pool, _: pool.tell(event))

    def tell_end(self, worker):
        self.trace(f"{worker.name} {worker.report.ending} at {worker.report.step}")
        event = TrainReturned(worker.name, worker.generation, worker.report)
        self.tell(worker.name, lambda pool, _: pool.tell(event))

    # -- life and death

    def start(self, name, avoid=""):
        random = self.random
        nodes = [n for n in (f"n{i}" for i in range(self.nodes)) if n != avoid]
        found = self.workers[name] = workers.Worker(self, name, random.choice(nodes))
        process = WorkerProcess(pid=1000 + int(name[1:]), node=found.node, host="h")
        self.time.after(random.uniform(0.0, self.slow_start), self._starting, found, process)

    def _starting(self, found, process):
        if found.lives and not found.hangs:
            self.tell(found.name, lambda pool, _: pool.tell(WorkerStarting(found.name, process)))
            if self.random.random() < self.fails_to_start:
                self.kill(found.name)
                return
            self.time.after(self.random.uniform(0.0, self.slow_start), self._ready, found)

    def _ready(self, found):
        if not found.lives or found.hangs:
            return
        found.ready = Ready(
            pid=1000 + int(found.name[1:]),
            node=found.node,
            host="h",
            endpoint=("h", int(found.name[1:]), "00"),
            lifeline=("h", 0, "secret"),
            stacks=3,
            fingerprint={"torch": "2"},
            step=0,
        )
        event = PrepareReturned(found.name, found.ready)
        self.tell(found.name, lambda pool, _: pool.tell(event))

    def kill(self, name):
        """Kill a worker without notice."""
        found = self.workers.get(name)
        if found is None or not found.lives:
            return
        self.trace(f"{name} is killed at step {found.step}")
        found.lives = False
        if found.runs or (found.plan is not None and found.report is None):
            event = TrainReturned(name, found.generation, None, died="killed")
        elif found.ready is None:
            event = PrepareReturned(name, None, died="killed")
        else:
            event = WorkerLost(name, "killed")
        self.tell(name, lambda pool, _: pool.tell(event))

    def end(self, name):
        """End a worker because the coordinator wants that."""
        found = self.workers.pop(name, None)
        if found is not None:
            self.trace(f"{name} is ended")
            found.lives = False

    def living(self):
        return sorted(n for n, w in self.workers.items() if w.lives)


class SimulatedPool:
    """Replaces `WorkerActors` of one coordinator."""

    def __init__(self, cluster):
        self.cluster, self.time = cluster, cluster.time
        self.events = deque()
        self.messages = 0
        self.before_call = lambda _: None  # called with the name of each method

    def _spend(self, call):
        self.messages += 1
        self.before_call(call)
        self.time.now += self.cluster.network.control_cpu

    def start(self, worker, *, fault=None, avoid=""):
        assert fault is None
        self._spend("start")
        self.cluster.start(worker, avoid)

    def hold(self, worker, _ready):
        found = self.cluster.workers.get(worker)
        if found is None or not found.lives:
            self.tell(WorkerLost(worker, "its lifeline cannot be opened"))

    def train(self, workers, plan):
        for worker in workers:
            self._train(worker, plan)

    def _train(self, worker, plan):
        self._spend("train")
        found = self.cluster.workers.get(worker)
        if found is None or not found.lives:
            died = TrainReturned(worker, plan.generation, None, died="died before")
            self.time.after(1e-3, self.tell, died)
            return
        self.cluster.order(worker, lambda one: one.train(plan))

    def ask_pause(self, worker, generation):
        def ask(one):
            one.pauses = one.pauses or one.generation == generation

        self._spend("ask_pause")
        self.cluster.order(worker, ask)

    def ask_checkpoint(self, worker, generation, step):
        def ask(one):
            if one.generation == generation:
                one.snapshot_at = step

        self._spend("ask_checkpoint")
        self.cluster.order(worker, ask)

    def abort(self, workers, generation, reason):
        self.cluster.trace(f"abort generation {generation}: {reason}")
        for worker in workers:
            self._spend("abort")
            self.cluster.order(worker, lambda one: one.abort(generation, reason))

    def _ask(self, workers, timeout, question):
        """Ask workers, and wait for their answers."""
        self._spend("ask")
        answers = {}

        def answer(one):
            given = question(one)
            if given is not None:
                name = one.name
                self.cluster.tell(name, lambda *_: answers.__setitem__(name, given))

        for worker in workers:
            self.time.now += self.cluster.network.control_cpu
            self.cluster.order(worker, answer)
        deadline, due = self.time.now + timeout, len(workers)
        self.time.run_until(deadline, lambda: len(answers) == due)
        return {worker: answers.get(worker) for worker in workers}

    def statuses(self, workers, timeout):
        return self._ask(workers, timeout, workers_status)

    def states(self, workers, timeout):
        return self._ask(workers, timeout, lambda one: one.as_found())

    def records(self, worker, after, timeout):
        found = self._ask([worker], timeout, lambda one: one.records_after(after))
        return found[worker] or []

    def save(self, worker, step):
        self._spend("save")
        found = self.cluster.workers.get(worker)
        if found is None or not found.lives or found.hangs:
            raise RayError(f"{worker} is dead")
        self.time.sleep(0.1)
        digest = self.cluster.keep(found.state)
        spec = self.cluster.spec
        place = spec.checkpoint_store.inside(checkpointer.name_of(step))
        header = {"run": spec.name, "run_id": spec.run_id, "digest": digest}
        checkpointer.commit(
            place, {**header, "scalars": self.cluster.scalars(step), "algorithms": []}, []
        )
        return digest

    def rescue(self, worker, step):  # noqa: ARG002
        raise RayError("this node has no disk")

    def end(self, member, neighbours=(), *, hangs=False):  # noqa: ARG002
        self._spend("end")
        self.cluster.end(member.worker)

    def release(self, member):
        self.end(member)

    def kill(self, worker):
        self.cluster.kill(worker)

    def close(self):
        pass

    def tell(self, event):
        self.events.append(event)

    def find(self):
        self._spend("find")
        return self.cluster.living()

    def report_memory_shortage(self, worker, why):
        pass

    def memory_kill(self, worker):  # noqa: ARG002
        return ""

    def computes_right(self, worker):  # noqa: ARG002
        return True

    def end_strangers(self, members):
        self._spend("end_strangers")
        for worker in sorted(set(self.cluster.workers) - set(members)):
            self.cluster.end(worker)

    def draining_nodes(self):
        return set(self.cluster.draining)

    def stack_of(self, member, _neighbours):
        found = self.cluster.workers.get(member.worker)
        finding = "gone" if found is None or not found.lives else "waits"
        if found is not None and found.lives and not found.waiting:
            finding = "moves"
        if found is not None and found.hangs:
            finding = "stopped"
        return Sighting(finding, f"stack of {member.worker}")

    @property
    def is_idle(self):
        return not self.events

    def next_event(self, timeout):
        self.before_call("next_event")
        if not self.events:
            self.time.run_until(self.time.now + timeout, lambda: bool(self.events))
        return self.events.popleft() if self.events else None


def workers_status(one):
    return one.status()
