"""A simulated worker: a state machine that does what messages and time make it do."""

from dataclasses import replace

import numpy as np

from raytrain_plus.checkpoint.upload import Share
from raytrain_plus.elastic.protocol.messages import Report, WorkerState, WorkerStatus
from raytrain_plus.elastic.protocol.records import Record
from tests.scale.problem import LOSS, PAUSE, SNAPSHOT, digest_of, metrics_of

_MOST_WRITERS = 4


class Exchange:
    """One worker's part in the sum of one step's vectors, by the real schedule."""

    def __init__(self, worker, step, rounds, rows):
        self.worker, self.step, self.rows = worker, step, rows
        self.reduce = len(rounds.reduce)
        self.rounds = [*rounds.reduce, *rounds.gather]
        self.main = rounds.main
        self.at, self.sent, self.waits_for = 0, False, None

    def advance(self):
        """Go on as far as messages have arrived; return the total when it is there."""
        while self.at < len(self.rounds):
            one, tag = self.rounds[self.at], (self.step, self.at)
            gathers = self.at >= self.reduce
            if not self.sent:
                self.sent = True
                for move in one.sends:
                    row = self.rows[self.main if gathers else move.row]
                    data = row[move.start : move.stop].copy()
                    self.worker.send(move.peer, tag, data)
                    if not self.worker.runs:
                        return None
            got = self.worker.frames
            needed = {}
            for move in one.receives:
                needed[move.peer] = needed.get(move.peer, 0) + 1
            missing = [p for p, n in needed.items() if len(got.get((*tag, p), ())) < n]
            self.waits_for = missing[0] if missing else None
            if missing:
                return None
            arrived = [got[*tag, move.peer].pop(0) for move in one.receives]
            if gathers:
                for move, data in zip(one.receives, arrived, strict=True):
                    self.rows[self.main][move.start : move.stop] = data
            data = iter(arrived)
            for add in one.adds:
                mine = self.rows[add.row][add.start : add.stop]
                own = add.other is not None
                other = self.rows[add.other][add.start : add.stop] if own else next(data)
                self.worker.cluster.add(mine, other, add.is_left)
            self.at, self.sent = self.at + 1, False
        return self.rows[self.main]


class Worker:
    """A process that the coordinator has requested."""

    def __init__(self, cluster, name, node):
        self.cluster, self.name, self.node = cluster, name, node
        self.lives, self.hangs, self.ready = True, False, None
        self.slow = 1.0
        self.step, self.state = 0, cluster.problem.start
        self.generation, self.plan, self.report = 0, None, None
        self.records = []
        self.formed = self.pauses = False
        self.snapshot_at = None
        self.exchange, self.frames, self.early = None, {}, []
        self.committed_at = 0.0
        self.since = 0.0

    @property
    def runs(self):
        return self.lives and self.plan is not None and self.report is None

    # -- what the coordinator says

    def train(self, plan):
        if plan.generation <= self.generation:
            return  # a message that was repeated
        self.generation, self.plan, self.report = plan.generation, plan, None
        self.place = [a.worker for a in plan.assignments].index(self.name)
        self.formed = self.pauses = False
        self.snapshot_at, self.exchange, self.frames = None, None, {}
        self.since = self.cluster.time.now
        early, self.early = self.early, []
        if self.place not in plan.healed_by:
            if plan.checkpoint is not None:
                loaded = self.cluster.load(plan.checkpoint)
                if loaded is None:
                    self.ends("refused", reason="the checkpoint is damaged")
                    return
                self.step, self.state = plan.step, loaded
            self.form()
        for frame in early:
            self.arrived(*frame)

    def abort(self, generation, reason):
        if self.runs and self.generation == generation:
            self.ends("aborted", reason=reason)

    def status(self):
        if self.hangs or not self.lives:
            return None
        return WorkerStatus(
            phase="exchange" if self.waiting else "compute",
            waiting=self.waiting,
            age=self.cluster.time.now - self.since,
            waits_for=self.exchange.waits_for if self.exchange is not None else None,
        )

    @property
    def waiting(self):
        return self.exchange is not None or not self.formed

    def as_found(self):
        if self.hangs or not self.lives:
            return None
        return WorkerState(
            ready=self.ready, generation=self.generation, report=self.report, step=self.step
        )

    # -- what it does

    def form(self):
        if self.step != self.plan.step:
            self.cluster.fault(f"{self.name} starts at {self.step}, the plan at {self.plan.step}")
        self.formed = True
        self.committed_at = self.committed_at or self.cluster.time.time()
        for receiver, source in self.plan.healed_by.items():
            if source == self.place:
                self.send(receiver, "heal", self.state)
        if self.runs and self.place == 0:
            self.cluster.tell_steps(self, self.generation, [])
        if self.runs and self.cluster.evaluates(self.step) and not self.plan.evaluated:
            self.evaluate()
        if self.runs:
            self.begin()

    def send(self, peer, tag, data):
        to = self.plan.assignments[peer].worker
        self.cluster.carry(self, to, (self.generation, tag, self.place, data))

    def arrived(self, generation, tag, place, data):
        if not self.lives or self.hangs:
            return
        if generation > self.generation:
            self.early.append((generation, tag, place, data))
            return
        if generation < self.generation or not self.runs:
            return  # a late frame
        if tag == "heal":
            if not self.formed:
                self.step, self.state = self.plan.step, data.copy()
                self.form()
            return
        self.frames.setdefault((*tag, place), []).append(data)
        self.go_on()

    def begin(self):
        if self.step == self.cluster.steps:
            self.ends("finished", digest=digest_of(self.state))
            return
        ranks = len(self.plan.assignments[self.place].ranks)
        self.since = self.cluster.time.now
        seconds = self.cluster.seconds(ranks) * self.slow
        self.cluster.time.after(seconds, self.computed, self.generation)

    def computed(self, generation):
        if not self.runs or self.hangs or generation != self.generation:
            return
        step = self.step + 1
        bounds = tuple((a.start, a.stop) for a in self.plan.assignments)
        plan, rounds = self.cluster.problem.schedule(bounds)
        slots = [s for s, host in zip(plan.slots, plan.hosts, strict=True) if host == self.place]
        rows = self.cluster.problem.partial(self.state, step, slots)
        rows[0][PAUSE] += self.pauses
        rows[0][SNAPSHOT] += self.snapshot_at is not None and self.snapshot_at <= step
        self.since = self.cluster.time.now
        self.exchange = Exchange(self, step, rounds[self.place], rows)
        self.go_on()

    def go_on(self):
        if self.exchange is None:
            return
        total = self.exchange.advance()
        if total is None or not self.runs:
            return
        self.exchange = None
        self.commit(total)

    def commit(self, total):
        problem, time = self.cluster.problem, self.cluster.time
        self.state = problem.update(self.state, total)
        self.step += 1
        self.committed_at = time.time()
        pauses, snapshots = total[PAUSE] > 0, total[SNAPSHOT] > 0
        seconds = tuple(
            self.cluster.seconds(len(a.ranks)) * self.cluster.slowness(a.worker)
            for a in self.plan.assignments
        )
        loss = float(total[LOSS])
        self.add(Record(self.step, self.generation, time.time(), loss, 1.0, None, seconds))
        self.cluster.trace(f"{self.name} committed {self.step}")
        if snapshots:
            self.snapshot_at = None
            self.write()
        if self.runs and self.cluster.evaluates(self.step):
            self.evaluate()
        if not self.runs:
            return
        if self.step < self.cluster.steps and (pauses or self.step == self.plan.pause_at):
            self.ends("paused")
        else:
            self.begin()

    def evaluate(self):
        metrics = metrics_of(self.state)
        self.add(Record(self.step, self.generation, self.cluster.time.time(), metrics=metrics))

    def add(self, record):
        self.records.append(record)
        if self.place == 0:
            self.cluster.tell_steps(self, self.generation, [record])

    def write(self):
        """Write this worker's share of a checkpoint, while it trains on."""
        writers = min(_MOST_WRITERS, len(self.plan.assignments))
        if self.place >= writers:
            return
        digest = self.cluster.keep(self.state)
        share = Share(self.generation, self.step, writers)
        if self.place == 0:
            self.cluster.tell_share(self, share)
        state = {
            "digest": digest,
            "scalars": self.cluster.scalars(self.step),
            "algorithms": [],
        }
        done = replace(share, files=[], state=state if self.place == 0 else None)
        self.cluster.time.after(self.cluster.write_seconds(), self.cluster.tell_share, self, done)

    def ends(self, ending, **why):
        self.exchange = None
        self.report = Report(
            ending=ending,
            step=self.step,
            committed_at=self.committed_at,
            formed=self.formed,
            **why,
        )
        self.cluster.tell_end(self)

    def records_after(self, step):
        return [r for r in self.records if r.step > step or (r.step == step and r.metrics)]


def add(mine, other, is_left):
    """Add in place, left operand first."""
    np.add(*((other, mine) if is_left else (mine, other)), out=mine)
