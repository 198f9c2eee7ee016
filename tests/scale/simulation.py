"""One schedule: a run under faults that a seed draws, and the judge of its end.

The Coordinator with all its parts, the journal, the fence, checkpoints' commits, plans, the
schedule of the exchange and the tree are the real ones. Time, processes, the network and the power
supply are simulated.

Documented errors that a schedule may end with are in `ALLOWED`; everything else must be the result
of the undisturbed run: the same bits, the same losses, each step once.
"""

import contextlib
import os
import random
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.clock import Clock
from raytrain_plus.elastic.coordinator import (
    checkpoint_coordinator,
    durable_journal,
    membership,
    restart,
    run_log,
)
from raytrain_plus.elastic.coordinator import coordinator as module
from raytrain_plus.elastic.coordinator.workers import PreemptionNotice, TargetChanged
from raytrain_plus.elastic.protocol.messages import ElasticConfig
from raytrain_plus.elastic.protocol.run_state import RunState
from raytrain_plus.observe import journal
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.fencing import FencedError
from tests.elastic.scripted_pool import make_spec
from tests.scale.clock import VirtualTime
from tests.scale.cluster import Cluster, SimulatedPool
from tests.scale.problem import LENGTH, Problem, digest_of, metrics_of

# docs/guide/failures.md names them.
ALLOWED = re.compile(
    r"groups in a row ended without a step|workers came up within|were lost one after the other"
)
_LACKS = re.compile(r"the journal lacks steps? (\d+)(?: to (\d+))?:")
_FEW = 8  # workers, of which half are taken away one after the other, and of more a tenth
_MOST_EVENTS = 400_000
_MOST_RESTARTS = 12


class Killed(BaseException):
    """The coordinator's process is gone. No handler of errors may catch it."""


class SimulatedThread:
    """A thread that runs in one go, a moment after it was started."""

    def __init__(self, simulation, target, args=(), **_):
        self._simulation, self._target, self._args = simulation, target, args
        self._done = False

    def start(self):
        owner = self._simulation.incarnation
        delay = self._simulation.random.uniform(0.0, 0.5)
        self._simulation.time.after(delay, self._run, owner)

    def _run(self, owner):
        if owner == self._simulation.incarnation:  # else its process is gone
            self._done = True
            self._target(*self._args)

    def join(self, timeout):
        time = self._simulation.time
        time.run_until(time.now + timeout, lambda: self._done)


class SimulatedJournal(journal.Journal):
    """The real journal, on a disk that may be full, tear a line, or lose what was not synced."""

    def __init__(self, simulation, folder):
        super().__init__(folder)
        self._simulation = simulation
        simulation.journals.append(self)
        self.synced = os.fstat(self._file).st_size

    def write_all(self, events):
        simulation = self._simulation
        fault = simulation.journal_fault(events)
        if fault == "full":
            raise OSError(28, "No space left on device")
        if fault == "before":
            raise Killed
        if fault == "torn":
            data = b"".join(journal.line_of(one) for one in journal.checked(events))
            os.write(self._file, data[: simulation.random.randrange(1, len(data))])
            raise Killed
        written = super().write_all(events)
        if fault == "after":
            raise Killed
        return written

    def sync(self):
        self.synced = os.fstat(self._file).st_size

    def lose_power(self):
        """Cut off what was not synced, or a part of it."""
        size = os.fstat(self._file).st_size
        os.ftruncate(self._file, self._simulation.random.randint(min(self.synced, size), size))


class SimulatedDurable(durable_journal.DurableJournal):
    def __init__(self, simulation, folder, allowed):
        self._simulation = simulation
        super().__init__(
            folder,
            lambda where: SimulatedJournal(simulation, where),
            clock=simulation.time.monotonic,
            allowed=allowed,
        )

    def settle(self, seconds):
        super().settle(seconds, self._simulation.time.sleep)


@dataclass(frozen=True)
class Verdict:
    """How a schedule ended.

    Attributes:
        seed: of the schedule.
        ending: `finished`, or the documented error.
        broken: promises that were broken; empty if all is well.
        drawn: the faults, for people.
        lines: the trace.
        events: how many events happened.
        struck: how many faults have struck.
    """

    seed: int
    ending: str
    broken: list
    drawn: list
    lines: list
    events: int
    struck: int


class Simulation:
    """One schedule.

    Args:
        seed: draws everything.
        folder: empty, for the run; best in memory.
        faults: whether faults strike.
        size: workers of a larger group, for which a fixed list of faults is spread over its
            steps. Default: 2 to 8, with faults as drawn.
    """

    def __init__(self, seed, folder, *, faults=True, size=None):
        self.seed, self.folder = seed, folder
        self.random = random.Random(seed)
        self.time = VirtualTime()
        self.time.on_event = self._count
        self.incarnation, self.journals = 0, []
        self.writes = 0
        self.restarts = 0
        self.struck = 0
        draw = self.random
        self.size = size or draw.randint(2, 8)
        steps = 12 if size else draw.randint(10, 30)
        ranks = 2 * size if size else draw.choice([8, 9, 12, 16])
        self.problem = Problem(seed, ranks, size or LENGTH)
        every = draw.choice([None, 3, 5, 8])
        clock = Clock(
            total_steps=steps, steps_per_epoch=steps, batch_size=ranks,
            evaluate_every=draw.choice([4, 5, 7]), checkpoint_every=every,
        )  # fmt: skip
        config = ElasticConfig(
            start_timeout=60.0, check_every=0, audit_every=0, spares=draw.choice([0, 0, 1])
        )
        self.spec = make_spec(
            folder, workers=(1, min(self.size, ranks)), logical_ranks=ranks, batch_size=ranks,
            clock=clock, elastic=config, evaluation_data="rows", run_id="id", claim="claim",
        )  # fmt: skip
        self.cluster = Cluster(self.time, draw, self.problem, self.spec)
        self.drawn = []
        self.at_event, self.at_write, self.at_commit = {}, {}, []
        self._most_events = _MOST_EVENTS
        if size:
            self.cluster.nodes = max(2, size // 8)
            self._plan_for(size, steps)
        elif faults:
            self._draw()

    def _plan_for(self, size, steps):
        """Let faults strike a large group, spread over its steps."""
        in_all = size * steps * 24  # messages, about
        self._most_events = 20 * in_all
        kinds = ["kill two", "cut", "silent", "slow", "rolling", "coordinator killed", "kill"]
        for number, kind in enumerate(kinds, 1):
            at = 4 * size + in_all * number // (len(kinds) + 1)
            self.at_event[at] = [kind]
            self.drawn.append(f"{kind} at {at}")

    def _draw(self):
        draw = self.random
        kinds = [
            "kill", "kill", "kill", "kill two", "cut", "cut one way", "silent", "hang", "slow",
            "rolling", "scale", "coordinator killed", "power", "all", "second coordinator",
            "stopped",
            "jump", "repeats", "full", "before", "torn", "after", "notice",
            "commit fails", "commit killed before", "commit killed after", "bad starts",
        ]  # fmt: skip
        for _ in range(draw.choice([1, 1, 2, 2, 3, 4, 6])):
            kind = draw.choice(kinds)
            if kind in ("full", "before", "torn", "after"):
                at = draw.randint(1, 60)
                self.at_write[at] = kind
            elif kind.startswith("commit"):
                at = len(self.at_commit)
                self.at_commit.append(kind)
            else:
                at = int(2 ** draw.uniform(0, 12))
                self.at_event.setdefault(at, []).append(kind)
            self.drawn.append(f"{kind} at {at}")

    # -- faults

    def _count(self, happened):
        if happened > self._most_events:
            raise RuntimeError("the schedule does not end")
        for kind in self.at_event.pop(happened, ()):
            self.cluster.trace(f"fault: {kind}")
            self.struck += 1
            self._strike(kind)

    def _strike(self, kind):  # noqa: C901, PLR0912 - a list of faults
        cluster, draw, time = self.cluster, self.random, self.time
        living = cluster.living()
        some = draw.sample(living, min(len(living), 2))
        if kind in ("kill", "kill two"):
            for name in some[: 1 if kind == "kill" else 2]:
                cluster.kill(name)
        elif kind == "all":
            for name in living:
                cluster.kill(name)
        elif kind in ("cut", "cut one way") and len(some) == 2:
            a, b = some
            cluster.cut |= {(a, b)} | ({(b, a)} if kind == "cut" else set())
            time.after(draw.uniform(0.1, 40.0), cluster.mend)
        elif kind == "silent":
            for name in draw.sample(living, draw.randint(0, len(living))):
                ways = draw.choice([(True, False), (False, True), (True, True)])
                cluster.cut |= {("coordinator", name)} if ways[0] else set()
                cluster.cut |= {(name, "coordinator")} if ways[1] else set()
            time.after(draw.uniform(0.1, 40.0), cluster.mend)
        elif kind == "hang" and some:
            cluster.workers[some[0]].hangs = True
        elif kind == "slow" and some:
            cluster.workers[some[0]].slow = draw.uniform(2.0, 6.0)
        elif kind == "rolling" and living:
            for i, name in enumerate(
                draw.sample(living, max(1, len(living) // (10 if self.size > _FEW else 2)))
            ):
                time.after(i * draw.uniform(0.01, 3.0), cluster.kill, name)
        elif kind == "scale" and cluster.pool is not None:
            cluster.pool.tell(TargetChanged(draw.randint(1, self.spec.workers[1])))
        elif kind == "notice" and some and cluster.pool is not None:
            cluster.pool.tell(PreemptionNotice(some[0], "preempted"))
        elif kind == "jump":
            time.jump += draw.uniform(-7200, 7200)
        elif kind == "repeats":
            cluster.repeats = 0.2
        elif kind == "bad starts":
            cluster.fails_to_start = 0.5
            time.after(20.0, setattr, cluster, "fails_to_start", 0.0)
        elif kind == "stopped":
            time.now += draw.uniform(0.5, 30.0)
        elif kind == "second coordinator" and cluster.coordinator is not None:
            self._lead_again()
        elif kind == "power" and cluster.coordinator is not None:
            self.journals[-1].lose_power()
            raise Killed
        elif kind == "coordinator killed" and cluster.coordinator is not None:
            raise Killed

    def journal_fault(self, events):
        self.writes += 1
        for one in events:
            self.cluster.trace(f"journal: {one['event']} {one.get('step', '')}".rstrip())
        kind = self.at_write.pop(self.writes, None)
        if kind is None or self.cluster.coordinator is None:
            return None
        if kind == "full":
            self.at_write[self.writes + 1] = "full" if self.random.random() < 0.7 else "none"
        self.struck += 1
        self.cluster.trace(f"fault: journal {kind}")
        return kind

    def _commit(self, place, header, files):
        kind = self.at_commit.pop(0) if self.at_commit else ""
        self.cluster.trace(f"commit {Path(str(place)).name} {kind}".rstrip())
        self.struck += bool(kind)
        if kind == "commit fails":
            raise StoreError(f"{place} cannot be written")
        if kind == "commit killed before":
            raise Killed
        checkpointer_commit(place, header, files)
        if kind == "commit killed after":
            raise Killed

    # -- coordinators

    def _lead(self, *, returns):
        """Lead the run with one coordinator; return its outcome, None if it was over."""
        self.incarnation += 1
        pool = SimulatedPool(self.cluster)
        self.cluster.pool, self.cluster.coordinator = pool, None
        coordinator = module.Coordinator(self.spec, pool, returns=returns)
        self.coordinators.append(coordinator)
        self.cluster.coordinator = coordinator
        if coordinator.is_over:
            coordinator.retire()
            return None
        return coordinator.run()

    def _lead_again(self):
        """Let a second coordinator lead to the end while the first one stands still."""
        before = self.cluster.pool, self.cluster.coordinator
        self._to_the_end(returns=True)
        self.cluster.pool, self.cluster.coordinator = before
        self.superseded = True

    def _to_the_end(self, *, returns):
        while True:
            self.restarts += 1
            try:
                self.outcome = self._lead(returns=returns)
            except Killed:
                self.cluster.trace("the coordinator is gone")
                self.cluster.pool = self.cluster.coordinator = None
                self.incarnation += 1
                returns = True
                if self.restarts > _MOST_RESTARTS:
                    raise
                self.time.sleep(self.random.uniform(1.0, 5.0))
            except FencedError:
                if not self.superseded:
                    raise
                self.cluster.trace("the coordinator before is fenced")
                return
            else:
                return

    def run(self):
        """Run the schedule, and judge it."""
        self.coordinators, self.superseded, self.outcome = [], False, None
        broken = self.cluster.faults
        try:
            with self._patched():
                self._to_the_end(returns=False)
            self._judge(broken)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            import traceback

            broken.append("".join(traceback.format_exception(error)))
        except Killed:
            broken.append("it was restarted too often")
        finally:
            for one in self.coordinators:
                one._fence._life._over.set()
            for one in self.journals:
                with contextlib.suppress(OSError):
                    one.close()
        ending = getattr(self, "ending", "broken")
        lines = [f"{at:12.6f} {text}" for at, text in self.cluster.lines]
        return Verdict(
            self.seed, ending, list(broken), self.drawn, lines, self.time.happened, self.struck
        )

    def _patched(self):
        stack = contextlib.ExitStack()

        def patch(where, name, value):
            stack.enter_context(mock.patch.object(where, name, value))

        for one in (module, membership, restart, run_log, durable_journal):
            patch(one, "time", self.time)
        patch(
            module,
            "open_for_coordinator",
            lambda folder, _, allowed: SimulatedDurable(self, folder, allowed),
        )
        patch(membership, "missing_resources", lambda *_: "CPU")

        def thread(target, args=(), **_):
            return SimulatedThread(self, target, args)

        names = SimpleNamespace(Thread=thread, Lock=threading.Lock)
        patch(checkpoint_coordinator, "threading", names)
        commits = SimpleNamespace(**{**vars(checkpointer), "commit": self._commit})
        patch(checkpoint_coordinator, "checkpointer", commits)
        return stack

    # -- the judge

    def _judge(self, broken):  # noqa: C901, PLR0912
        events = journal.read(self.folder)
        ends = [one for one in events if one["event"] == "end"]
        waiting = self.coordinators[-1].health().unwritten_end
        if waiting and not ends:  # the disk was full; the driver gets the end
            self.ending = "finished, and the journal could not be written"
            (end,) = (one for one in waiting if one["event"] == "end")
            states, _ = self.problem.undisturbed(self.cluster.steps)
            if end["state"] == RunState.FINISHED and end["digest"] != digest_of(states[-1]):
                broken.append("the last state has other bits")
            return
        if len(ends) != 1:
            broken.append(f"the journal has {len(ends)} ends")
            return
        (end,) = ends
        self.ending = "finished"
        states, losses = self.problem.undisturbed(self.cluster.steps)
        if end["state"] != RunState.FINISHED:
            self.ending = end["error"]
            if not ALLOWED.search(end["error"]):
                broken.append(f"it ended so: {end['state']}: {end['error']}")
        elif end["digest"] != digest_of(states[-1]):
            broken.append("the last state has other bits")
        steps = [one for one in events if one["event"] == "step"]
        numbers = [one["step"] for one in steps]
        lacking = lacking_of(events)
        last = self.cluster.steps if self.ending == "finished" else max([0, *numbers, *lacking])
        due = [step for step in range(1, last + 1) if step not in lacking]
        if numbers != due:
            broken.append(f"the journal has the steps {numbers}, and not {due}")
        elif [one["loss"] for one in steps] != [losses[step - 1] for step in due]:
            broken.append("the journal has other losses")
        told = [(one["step"], one["metrics"]) for one in events if one["event"] == "evaluate"]
        if self.ending == "finished":
            right = [(s, metrics_of(states[s])) for s in due if self.cluster.evaluates(s)]
            if [one for one in told if one[0] not in lacking] != right:
                broken.append(f"the evaluations are of {[s for s, _ in told]}, not "
                              f"{[s for s, _ in right]}, or of other states")  # fmt: skip
        for digest, state in self.cluster.kept.items():
            assert digest_of(state) == digest
        right = {checkpointer.name_of(s): digest_of(state) for s, state in enumerate(states)}
        for manifest in sorted(Path(self.folder).glob("checkpoint_*/manifest.json")):
            said = checkpointer.read_header(manifest.parent)
            if said.digest != right[manifest.parent.name]:
                broken.append(f"{manifest.parent.name} has other bits")


def lacking_of(events):
    """Return the steps of which the journal says itself that it lacks them."""
    found = set()
    for one in events:
        if one["event"] == "warning" and (said := _LACKS.search(one["text"])):
            found |= set(range(int(said[1]), int(said[2] or said[1]) + 1))
    return found


checkpointer_commit = checkpointer.commit


def memory_folder():
    """Return where files lie in memory, if the machine has such a place."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else None


def simulate(seed, **options):
    """Run the schedule of a seed; return its verdict."""
    folder = Path(tempfile.mkdtemp(prefix="raytrain_plus-scale-", dir=memory_folder()))
    try:
        return Simulation(seed, folder, **options).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
