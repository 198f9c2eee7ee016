"""The cost of scale for the coordinator and one worker, measured with a given number of members.

`at_size` calls the real code, in this process. Costs that would need thousands of processes are
measured with few (`messages`, and `scale_wire.py`), and extrapolated by `scale_model.py`.
"""

import json
import multiprocessing
import os
import pickle
import queue
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.scale_model import RANKS_PER_WORKER, AtSize, Messages
from benchmarks.traffic import ranges_of
from raytrain_plus.checkpoint.files import CheckpointFile, Layout, lay_out, places_of
from raytrain_plus.checkpoint.upload import Share
from raytrain_plus.clock import Clock
from raytrain_plus.elastic.coordinator.checkpoint_coordinator import (
    CheckpointCoordinator,
    CommitReturned,
)
from raytrain_plus.elastic.coordinator.control_channel import LifelineChannel
from raytrain_plus.elastic.coordinator.membership import Membership
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.liveness.lifeline import Lifelines, LifelineServer
from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign
from raytrain_plus.elastic.policy.make_plan import Member
from raytrain_plus.elastic.policy.rebalance import Rebalancer
from raytrain_plus.elastic.protocol import control
from raytrain_plus.elastic.protocol.messages import (
    Assignment,
    ElasticConfig,
    Plan,
    Ready,
    Report,
    RunSpec,
)
from raytrain_plus.elastic.protocol.records import Record
from raytrain_plus.observe.causes import Cause
from raytrain_plus.observe.journal import Journal
from raytrain_plus.training.corruption import Facts, judge
from raytrain_plus.training.tree import additions, maximal_subtrees

STATE_BYTES = 60 * 10**9  # of a checkpoint: 5 billion parameters with two moments each
_PARAMETERS = 300  # tensors of the model
_WORKERS_OF_A_NODE = 8
_WINDOW = 15  # steps from one decision on a new plan to the next


def seconds(action: Callable[[], Any], times: int = 3) -> float:
    """Return the CPU seconds of an action: the least of several runs."""
    found = []
    for _ in range(times):
        begun = time.process_time()
        action()
        found.append(time.process_time() - begun)
    return min(found)


def at_size(workers: int) -> AtSize:
    """Measure all costs that need no network."""
    names = [f"w{i}" for i in range(workers)]
    ranks = workers * RANKS_PER_WORKER
    members = [WorkerSpeed(name) for name in names]
    first = assign(ranks, members)
    one_less = assign(ranks, members[1:] or members, first)
    replaced = [*members[1:], WorkerSpeed("new")]
    plan_seconds = max(
        seconds(lambda: assign(ranks, members)), seconds(lambda: assign(ranks, replaced, first))
    )
    plan = _plan(first)
    nodes = _nodes(first)
    hosts = [f"10.0.0.{i // _WORKERS_OF_A_NODE}" for i in range(workers)]
    layout = layout_of(workers)
    shares = shares_of(layout)
    facts = [Facts(state=17)] * workers
    lines = _lines(plan)
    return AtSize(
        workers=workers,
        plan_seconds=plan_seconds,
        plan_bytes=len(control.encode(control.Train(plan))),
        encode_seconds=seconds(lambda: control.encode(control.Train(plan))),
        additions_seconds=seconds(lambda: additions(nodes, ranks)),
        subtrees=len(nodes) / len(first),
        subtrees_after_loss=len(_nodes(one_less)) / len(one_less),
        look_seconds=look_seconds(names),
        record_bytes=len(pickle.dumps(_record(1, workers))),
        record_seconds=record_seconds(first),
        step_line_bytes=lines[0],
        generation_line_bytes=lines[1],
        share_seconds=seconds(lambda: places_of(len(layout_of(workers).shares), hosts)),
        share_bytes=sum(len(pickle.dumps(share)) for share in shares),
        writers=len(layout.shares),
        most_written=max(sum(piece.bytes for piece in share) for share in layout.shares),
        checkpoint_seconds=seconds(lambda: checkpoint(names, hosts, shares)),
        judge_seconds=seconds(lambda: judge(facts)),
        lifeline_seconds=lifeline_seconds(),
    )


def layout_of(workers: int) -> Layout:
    """Return the files of a checkpoint of `STATE_BYTES`, a third of which is the model."""
    each = STATE_BYTES // 3 // _PARAMETERS
    model = {f"layers.{i}.weight": each for i in range(_PARAMETERS)}
    moments = ("exp_avg", "exp_avg_sq")
    rest = {f"optimizer/{name}/{moment}": each for name in model for moment in moments}
    return lay_out(model, rest, workers)


def shares_of(layout: Layout) -> list[Share]:
    """Return what the writers of a checkpoint report: that it has begun, and each its files."""
    count = len(layout.shares)
    found = [Share(1, 1, count)]
    for share in layout.shares:
        files = [CheckpointFile(piece.file, piece.bytes, "0" * 64) for piece in share]
        found.append(Share(1, 1, count, files))
    state = {"digest": "0" * 64, "scalars": {"step": 1}, "algorithms": ()}
    found[1] = replace(found[1], state=state)
    return found


def checkpoint(names: Sequence[str], hosts: Sequence[str], shares: Sequence[Share]) -> None:
    """Let the coordinator do its work for one checkpoint, up to the manifest."""
    told: queue.Queue[CommitReturned] = queue.Queue()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:  # a thread tidies
        run_log = RunLog(Journal(Path(name)))
        run_log.extend_to(1)
        spec = replace(
            spec_for(len(names)),
            folder=Path(name),
            clock=Clock(total_steps=10, steps_per_epoch=10, batch_size=1, evaluate_every=10),
        )
        books = CheckpointCoordinator(spec, run_log, told.put)
        books.start_generation(1, names, hosts)
        writers = [names[place] for place in places_of(shares[0].writers, hosts)]
        living = set(names)
        for worker, share in zip([writers[0], *writers], shares, strict=True):
            books.written(worker, share, living, 0.0)
        books.committed(told.get(), 0.0)
        assert books.newest() is not None


def _plan(assignments: tuple[Assignment, ...]) -> Plan:
    draws = random.Random(17)  # ids that do not compress, as those of endpoints
    endpoints = tuple(
        (f"10.0.{i // 256}.{i % 256}", draws.randrange(32768, 61000), draws.randbytes(8).hex())
        for i, _ in enumerate(assignments)
    )
    return Plan(
        generation=1,
        step=0,
        assignments=assignments,
        healed_by={},
        endpoints=endpoints,
        pause_at=None,
        evaluated=False,
    )


def _nodes(plan: tuple[Assignment, ...]) -> list[tuple[int, int]]:
    return [node for a in plan for node in maximal_subtrees(a.start, a.stop, plan[-1].stop)]


def _record(step: int, workers: int) -> Record:
    times = tuple(0.1 + i * 1e-9 for i in range(workers))
    return Record(step, 1, 1.0, 0.5, 1.0, compute_seconds=times)


def record_seconds(plan: tuple[Assignment, ...]) -> float:
    """Return the CPU seconds of processing one step's record, with speeds and journal."""
    with tempfile.TemporaryDirectory() as folder:
        run_log = RunLog(Journal(Path(folder)))
        speeds = Rebalancer()
        speeds.start_generation(plan)
        messages = [pickle.dumps(_record(step, len(plan))) for step in range(1, 2 * _WINDOW + 4)]
        begun = time.process_time()
        for message in messages:
            record = pickle.loads(message)  # noqa: S301 - our own, of a moment ago
            run_log.add([record], len(plan))
            speeds.add_step(record.step, record.compute_seconds)
        return (time.process_time() - begun) / len(messages)


def _lines(plan: Plan) -> tuple[int, int]:
    """Return the bytes of a step's line in the journal, and of a generation's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_log = RunLog(Journal(folder))
        run_log.expect(plan, [Cause("start")], None)
        run_log.started(1, 1.0)
        run_log.add([_record(1, len(plan.assignments))], len(plan.assignments))
        lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
        kinds = {json.loads(line)["event"]: len(line) for line in lines}
        return kinds["step"], kinds["generation"]


def member_of(name: str) -> Member:
    """Return the member of a worker that trains."""
    ready = Ready(
        pid=1,
        node="node",
        host="10.0.0.1",
        endpoint=("10.0.0.1", 1, "0123456789abcdef"),
        lifeline=("10.0.0.1", 1, "secret"),
        stacks=3,
        fingerprint={},
        step=1,
    )
    return Member(name, ready, warm=True)


def look_seconds(names: list[str]) -> float:
    """Return the CPU seconds of the coordinator's checks after each event."""
    no_pool: Any = None  # Ray is not asked for anything
    with tempfile.TemporaryDirectory() as folder:
        run_log = RunLog(Journal(Path(folder)))
        membership = Membership(spec_for(len(names)), no_pool, run_log)
        membership.members = {name: member_of(name) for name in names}

        def look() -> None:
            membership.recruit()
            membership.wants_change(names)

        return seconds(look)


def spec_for(workers: int) -> RunSpec:
    """Return a run with a number of workers; nothing else of it matters here."""
    nothing: Any = None
    return RunSpec(
        name="scale",
        folder=Path(),
        task="",
        task_settings={},
        import_paths=(),
        data=None,
        evaluation_data=None,
        batch_size=workers,
        logical_ranks=workers,
        evaluation_rows=1,
        probe=None,
        clock=nothing,
        seed=0,
        algorithms=(),
        workers=(1, workers),
        resources={},
        elastic=ElasticConfig(),
    )


def lifeline_seconds(times: int = 200) -> float:
    """Return the CPU seconds of opening one lifeline, with both of its ends."""
    lines = Lifelines(lambda *_: None)
    lifeline = LifelineServer("127.0.0.1", lambda: None)
    begun = time.process_time()
    for number in range(times):
        lines.hold(str(number), lifeline.address)
    spent = (time.process_time() - begun) / times
    for number in range(times):
        lines.release(str(number))
    lifeline.close()
    return spent


def messages(times: int = 400) -> Messages:
    """Measure messages over a lifeline; another process is the worker."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_answer, args=(theirs,), daemon=True)
    worker.start()
    arrived = threading.Semaphore(0)
    channel = LifelineChannel(lambda *_: None, lambda *_: arrived.release())
    try:
        channel.hold("w0", ours.recv())
        small, large = (control.Train(_plan(_assignments(n))) for n in (10, 10_000))
        costs = [
            _message_seconds(channel, arrived, [plan] * times, times) for plan in (small, large)
        ]
        told = _message_seconds(channel, arrived, [control.AskRecords(1, times)], times)
    finally:
        channel.close()
        ours.send("the end")
        worker.join()
    more = len(control.encode(large)) - len(control.encode(small))
    return Messages(costs[0], max(0.0, costs[1] - costs[0]) / more, told)


def _message_seconds(
    channel: LifelineChannel,
    arrived: threading.Semaphore,
    sent: Sequence[control.ToWorker],
    answers: int,
) -> float:
    """Return the CPU seconds of this process for each answer to some messages."""
    begun = time.process_time()
    for message in sent:
        channel.send("w0", message)
    for _ in range(answers):
        arrived.acquire()
    return (time.process_time() - begun) / answers


def _answer(pipe: Any) -> None:
    """Be a worker: report the end of each generation, and as many steps as are asked for."""

    def receive(frame: bytes) -> None:
        match control.to_worker(frame):
            case control.AskRecords(after=count):
                for number in range(count):
                    lifeline.send(control.encode(control.Steps(number, 1, 1.0, 1, [])))
            case _:
                lifeline.send(control.encode(ended))

    ended = control.GenerationEnded(1, Report(ending="paused", step=1, committed_at=1.0))
    lifeline = LifelineServer("127.0.0.1", lambda: None, receive)
    pipe.send(lifeline.address)
    pipe.recv()
    lifeline.close()


def _assignments(workers: int) -> tuple[Assignment, ...]:
    return tuple(
        Assignment(f"w{i}", ranks.start, ranks.stop)
        for i, ranks in enumerate(ranges_of(workers, workers))
    )


def machine() -> dict[str, Any]:
    """Return the machine that the figures depend on."""
    return {"cores": os.cpu_count(), "load": [round(one, 1) for one in os.getloadavg()]}
