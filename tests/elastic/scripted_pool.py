"""Workers without Ray or processes, which start, train, die and hang as a script says.

Time passes only when the coordinator waits, so that tests do not wait.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

from ray.exceptions import RayError

from raytrain_plus.checkpoint.upload import Share
from raytrain_plus.clock import Clock
from raytrain_plus.elastic.coordinator.workers import (
    PrepareReturned,
    ShareWritten,
    TrainReturned,
    WorkerStarting,
)
from raytrain_plus.elastic.protocol.messages import (
    Corruption,
    ElasticConfig,
    Ready,
    Report,
    RunSpec,
    Sighting,
    WorkerProcess,
    WorkerStatus,
)
from raytrain_plus.elastic.protocol.records import Record
from raytrain_plus.task import Task
from raytrain_plus.user_code import CodeFile

STEP_SECONDS = 1.0


class FakeTime:
    """Replaces the module `time` in the package."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class AtOnce:
    """A thread that has ended when `start` returns."""

    def __init__(self, target, args=(), **_):
        self.start = lambda: target(*args)
        self.join = lambda _=None: None


def make_spec(folder, **changes):
    described = {
        "name": "run",
        "folder": Path(folder),
        "task": Task(),
        "import_paths": (),
        "data": None,
        "evaluation_data": None,
        "batch_size": 8,
        "logical_ranks": 8,
        "evaluation_rows": 8,
        "probe": {},
        "task_settings": {},
        "clock": Clock(total_steps=10, steps_per_epoch=5, batch_size=8, evaluate_every=5),
        "seed": 17,
        "algorithms": (),
        "workers": (1, 3),
        "resources": {"CPU": 1.0},
        "elastic": ElasticConfig(start_timeout=60.0, check_every=1),
    }
    return RunSpec(**{**described, **changes})


def make_ready(worker, *, node="node", step=0, **fingerprint):
    return Ready(
        pid=1000 + int(worker[1:]),
        node=node,
        host="127.0.0.1",
        endpoint=("127.0.0.1", int(worker[1:]), "00"),
        lifeline=("127.0.0.1", 0, "secret"),
        stacks=3,
        fingerprint={"torch": "2", "probe gradient": "same", **fingerprint},
        step=step,
    )


def comes(worker):
    return PrepareReturned(worker, make_ready(worker))


def loss_of(step):
    return 1.0 / step


@dataclass
class Workers:
    """The group of a generation, while it runs."""

    plan: object
    called: set = field(default_factory=set)
    running: set = field(default_factory=set)
    formed: bool = False  # all members have the state from which the plan starts
    stuck: bool = False  # a member is lost or hangs, so that no member makes progress
    pausing: bool = False


class ScriptedPool:
    """Replaces `WorkerActors`.

    Args:
        time: the clock, which advances when the coordinator waits.
        arrive: worker -> how it arrives, or None if it does not.
        script: step -> a function of this pool, called once while that step is being computed.
    """

    def __init__(self, time, arrive=comes, script=()):
        self.time = time
        self.arrive = arrive
        self.script = dict(script)
        self.coordinator = None
        self.loss_of = loss_of
        self.digest_of = lambda _, step: f"state {step}"
        self.draining = set()
        self.events = deque()
        self.started, self.ended, self.hung, self.plans, self.saved = [], [], [], [], []
        self.avoided = {}  # worker -> the node on which it must not start
        self.steps = {}  # worker -> committed steps, of live workers
        self.seen = {}  # worker -> what a neighbour sees of it
        self.answers = {}  # worker -> what it says when asked what it is doing
        self.told = True  # whether steps are reported as they are committed
        self.known = []  # all records of the survivors
        self.group = None
        self.held, self.asked, self.tested = [], [], []
        self.short = {}  # worker -> how it was ended for lack of memory
        self.wrong = set()  # workers whose arithmetic is wrong
        self.left = {}  # worker -> its state, as a restarted coordinator finds it
        self.seconds = lambda _, ranks: 0.1 * len(ranks)  # of computing, per worker and step
        # Seconds, visible and hidden: fewer bytes are better.
        self.exchange = 10.0, 0.0
        self.forming = {}  # generation -> a function of this pool, called before all have the state
        self.damaged = set()  # checkpoints
        self.writes = True  # whether a share of a checkpoint is written as soon as it is started
        self.share_error = ""  # why it cannot be
        self.store_error = ""  # why the store refuses writes

    # -- the methods of `WorkerActors`

    def start(self, worker, *, fault=None, avoid=""):
        self.started.append(worker)
        self.avoided[worker] = avoid
        if fault == "hang_newcomer":
            process = WorkerProcess(pid=1000 + int(worker[1:]), node="node", host="127.0.0.1")
            self.events.append(WorkerStarting(worker, process))
            return
        came = self.arrive(worker)
        if fault == "edit_task":
            code = {"task.py": CodeFile("/task.py", "edited")}
            came = replace(came, ready=replace(came.ready, code=code))
        if came is not None:
            self.come(came)

    def train(self, workers, plan):
        self.plans.append(plan)
        self.group = Workers(plan)
        for worker in workers:
            self.group.called.add(worker)
            if worker in self.steps:
                self.group.running.add(worker)
            else:
                self.group.stuck = True
                self.returned(worker, died="the actor died before")

    def ask_pause(self, worker, generation):
        if self.group.plan.generation == generation and worker in self.group.running:
            self.group.pausing = True

    def abort(self, workers, generation, reason):
        if self.group is None:  # a coordinator was restarted
            self.let_go(workers, reason)
            return
        assert self.group.plan.generation == generation
        for worker in workers:
            if worker in self.group.running and worker not in self.answers:
                self.report(worker, "aborted", reason=reason)

    def statuses(self, workers, timeout):
        self.time.now += timeout if None in self.answers.values() else 0.0
        places = [a.worker for a in self.group.plan.assignments] if self.group else []
        hung = [place for place, worker in enumerate(places) if worker in self.answers]
        waits_for = next(iter(hung), None)
        waiting = WorkerStatus(phase="exchange", waiting=True, age=1e6, waits_for=waits_for)
        return {worker: self.answers.get(worker, waiting) for worker in workers}

    def records(self, worker, after, timeout):
        if worker in self.answers:  # it hangs
            self.time.now += timeout
            return []
        return [r for r in self.known if r.step > after] if worker in self.steps else []

    def ask_checkpoint(self, worker, generation, step):
        if worker in self.group.running:  # otherwise its report is on its way
            self.asked.append((generation, step))

    def save(self, worker, step):
        if self.store_error:
            raise RayError(self.store_error)
        self.saved.append((worker, step))
        return self.digest_of(worker, self.steps[worker])

    def rescue(self, worker, step):
        self.saved.append((worker, step))
        return self.digest_of(worker, self.steps[worker]), f"/rescued/{step}"

    def end(self, member, neighbours=(), *, hangs=False):
        assert member not in neighbours
        self.ended.append(member.worker)
        self.hung += [member.worker] if hangs else []
        self.steps.pop(member.worker, None)
        self.answers.pop(member.worker, None)

    def release(self, member):
        self.end(member)

    def close(self):
        self.closed = True

    def tell(self, event):
        self.events.append(event)

    def find(self):
        return sorted(self.steps)

    def states(self, workers, _timeout):
        return {worker: self.left[worker] for worker in workers}

    def report_memory_shortage(self, worker, why):
        self.short[worker] = why

    def memory_kill(self, worker):
        return self.short.get(worker, "")

    def computes_right(self, worker):
        self.tested.append(worker)
        return worker not in self.wrong

    def hold(self, worker, _ready):
        self.held.append(worker)

    def end_strangers(self, members):
        for worker in sorted(set(self.steps) - set(members)):
            self.ended.append(worker)
            self.steps.pop(worker)

    def draining_nodes(self):
        return self.draining

    def stack_of(self, member, _neighbours):
        return Sighting(self.seen.get(member.worker, "stopped"), f"stack of {member.worker}")

    @property
    def is_idle(self):
        return not self.events

    def next_event(self, timeout):
        if self.events:
            return self.events.popleft()
        group = self.group
        if group and group.running and group.called == members(group.plan) and not group.stuck:
            if not group.formed:
                self.form()
            if not group.stuck:
                self.run_step()
            return self.events.popleft() if self.events else None
        self.time.now += timeout
        return None

    # -- the actions of a script

    def come(self, came):
        if came.ready is not None:
            self.steps[came.worker] = came.ready.step
        self.events.append(came)

    def die(self, worker):
        """Lose a worker; its neighbours wait until the generation is aborted."""
        self.steps.pop(worker, None)
        self.group.running.discard(worker)
        self.group.stuck = True
        self.returned(worker, died="the actor died")

    def hang(self, worker, status=None):
        """Let a worker hang: it does not answer, or says that it is busy."""
        self.answers[worker] = status
        self.group.stuck = True

    def find_corruption(self, accused=(), suspects=(), *, tie=False):
        """Let all workers find corruption before the step in flight is committed."""
        step = max(self.steps[worker] for worker in self.group.running)
        found = Corruption(step, tuple(accused), tuple(suspects), tie, "it is wrong")
        self.group.stuck = True
        for worker in sorted(self.group.running):
            self.report(worker, "corrupt", corruption=found)

    def fail(self, worker, error, *, transient=False):
        self.group.stuck = True
        self.report(worker, "failed", error=error, transient=transient)

    def crash(self, worker, folder, word="Fatal Python error: Segmentation fault"):
        """Let a worker's process crash and leave a report."""
        (folder / f".crash-{worker}").write_text(word)
        self.die(worker)

    def commit(self, workers):
        """Let some workers commit the step in flight, though others do not."""
        for worker in workers:
            self.steps[worker] += 1
        step = max(self.steps[worker] for worker in workers)
        self.known.append(self.record(step))

    # -- inside

    def form(self):
        plan = self.group.plan
        self.forming.pop(plan.generation, lambda _: None)(self)
        if plan.checkpoint in self.damaged:
            self.group.stuck = True
            self.report(plan.assignments[0].worker, "refused", reason="it is damaged")
        if not self.group.stuck:
            self.group.formed = True
            self.steps |= dict.fromkeys(self.group.running, plan.step)

    def let_go(self, workers, reason):
        for worker in workers:
            found = self.left[worker]
            if found.report is None and worker not in self.answers:
                report = Report(ending="aborted", step=found.step, committed_at=1.0, reason=reason)
                self.left[worker] = replace(found, report=report)

    def run_step(self):
        group = self.group
        step = max(self.steps[worker] for worker in group.running) + 1
        self.time.now += STEP_SECONDS
        action = self.script.pop(step, None)
        if action is not None:
            action(self)
        if group.stuck:
            return
        for worker in group.running:
            self.steps[worker] = step
        self.known.append(self.record(step))
        if self.told:
            generation = group.plan.generation
            first = group.plan.assignments[0].worker
            self.coordinator.report_steps(first, generation, self.time.now, step, self.known[-1:])
        self.take_snapshots(step)
        if step == self.coordinator._spec.clock.total_steps:
            self.report_all("finished")
        elif group.pausing or step == group.plan.pause_at:
            self.report_all("paused")

    def record(self, step):
        generation = self.group.plan.generation
        seconds = tuple(self.seconds(a.worker, a.ranks) for a in self.group.plan.assignments)
        loss = self.loss_of(step)
        return Record(
            step,
            generation,
            self.time.now,
            loss,
            1.0,
            compute_seconds=seconds,
            exchange_seconds=self.exchange,
        )

    def take_snapshots(self, step):
        generation = self.group.plan.generation
        if not any(g == generation and at <= step for g, at in self.asked):
            return
        self.asked = [(g, at) for g, at in self.asked if g != generation]
        names = [assignment.worker for assignment in self.group.plan.assignments]
        state = {"digest": f"state {step}", "scalars": {"step": step}, "algorithms": []}
        for worker in names:
            share = Share(generation, step, len(names))
            self.tell(ShareWritten(worker, share))
            if self.share_error:
                self.tell(ShareWritten(worker, replace(share, error=self.share_error)))
            elif self.writes:
                self.tell(ShareWritten(worker, replace(share, files=[], state=state)))

    def report_all(self, ending):
        for worker in sorted(self.group.running):
            self.report(worker, ending)

    def report(self, worker, ending, **why):
        self.group.running.discard(worker)
        step = self.steps[worker]
        digest = self.digest_of(worker, step) if ending == "finished" else ""
        why = {"formed": self.group.formed, "digest": digest, **why}
        report = Report(ending=ending, step=step, committed_at=self.time.now, **why)
        self.events.append(TrainReturned(worker, self.group.plan.generation, report))

    def returned(self, worker, died):
        self.events.append(TrainReturned(worker, self.group.plan.generation, None, died=died))


def members(plan):
    return {assignment.worker for assignment in plan.assignments}
