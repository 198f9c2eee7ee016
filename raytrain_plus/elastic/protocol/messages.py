"""The values that the trainer, the coordinator and the workers exchange."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

from raytrain_plus.algorithms import Aspect
from raytrain_plus.algorithms.naming import Described
from raytrain_plus.checkpoint.retention import Retention
from raytrain_plus.clock import Clock
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.run_state import RunState
from raytrain_plus.names import check_name
from raytrain_plus.observe.journal import Event as Event  # noqa: PLC0414 - likewise
from raytrain_plus.redaction import redacted, redacted_repr
from raytrain_plus.stopping import Rule
from raytrain_plus.storage import staging
from raytrain_plus.storage.store import Folder, Store, store_of
from raytrain_plus.task import Task
from raytrain_plus.training.flops import Flops
from raytrain_plus.user_code import Code

Fingerprint = Mapping[str, str]
_ABOVE_ZERO = (
    "hang_deadline",
    "first_step_deadline",
    "start_timeout",
    "threads",
    "max_checkpoint_failures",
    "orphan_seconds",
    "coordinator_deadline",
)
Ending = Literal["finished", "paused", "aborted", "failed", "refused", "corrupt"]
Finding = Literal["gone", "stopped", "stands", "moves", "waits", "unseen"]


@dataclass(frozen=True, kw_only=True)
class ElasticConfig:
    """How a run deals with workers that come, go, or hang.

    Attributes:
        hang_deadline: seconds without progress after which a worker counts as hung. Default: four
            times the median step, at least 5.
        first_step_deadline: the same for the run's first step, which warms everything up; a first
            step with a newcomer gets four times as long as the slowest such step took. Default 120.
        start_timeout: seconds to wait for the first `min` workers. Default 120.
        bitwise: refuse a worker that computes other bits than the group. When False it is
            admitted, and the run is marked as not bitwise reproducible. Default True.
        threads: threads per worker; part of what the bits depend on. Default: the whole CPUs that
            a worker asks Ray for, at least 1.
        spares: workers beyond the group that are kept warm, to take over at once. Default 0.
        rebalance_above: the share of a step that sharing the work by measured speeds must save
            before it is done; None never does, and gives no less balance away for bytes either
            (`elastic/policy/imbalance.py`). Default 0.2.
        check_every: steps between comparisons of the replicas' states; 1 lets nothing wrong be
            committed, at about 1 % of a small model's step; a longer interval goes back to a
            checkpoint when something is found; 0 compares only with an audit. Default 10.
        audit_every: steps between two gradients that a second worker computes as well; 0: never.
            Default 100.
        checkpoint_every: how often to keep the state, in the units of a duration; None keeps the
            last alone. Training goes on while it is written. Default `"1ep"`.
        checkpoint_storage: a path or an fsspec URL, such as `s3://bucket/folder`, in which the
            run's checkpoints are kept, in a folder of its name. Default: the run's folder.
        checkpoint_options: for that store's filesystem, such as an endpoint; and for that of the
            run's folder if this is a URL.
        max_checkpoint_failures: checkpoints in a row that cannot be written, after which the run
            ends. Default: none, it goes on.
        orphan_seconds: how long workers wait for their coordinator to come back before they end
            themselves. Default 120.
        coordinator_deadline: seconds without an answer after which the process that follows the run
            ends a coordinator that hangs, so that Ray starts it again. Each question may take 5 s.
            Default 30.
        worker_pool: the name of a worker pool, as a sweep has one: the run uses its processes,
            which outlive the run. Default: none, each worker is a new process.
        isa: cap on the CPU's instruction set for fleets of mixed machines: `default` (SSE/NEON),
            `avx2` or `avx512`; part of what the bits depend on. Default: none.
        peak_tflops: the peak of one worker's device in 10^12 floating-point operations per second,
            to which a run's own rate is compared (`mfu`); 0: no comparison. Default: by the GPU's
            name (`training/flops.py`); of a CPU no peak is known.
    """

    hang_deadline: float | None = None
    first_step_deadline: float = 120.0
    start_timeout: float = 120.0
    bitwise: bool = True
    threads: int | None = None
    spares: int = 0
    rebalance_above: float | None = 0.2
    check_every: int = 10
    audit_every: int = 100
    checkpoint_every: str | None = "1ep"
    checkpoint_storage: str | None = None
    checkpoint_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    max_checkpoint_failures: int | None = None
    orphan_seconds: float = 120.0
    coordinator_deadline: float = 30.0
    worker_pool: str | None = None
    isa: Literal["default", "avx2", "avx512"] | None = None
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be above zero")
        for name in ("spares", "check_every", "audit_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.peak_tflops is not None and not 0 <= self.peak_tflops < float("inf"):
            raise ValueError(
                f"peak_tflops is {self.peak_tflops}; it must be a number that is at least 0"
            )
        if self.isa not in (None, "default", "avx2", "avx512"):
            raise ValueError(f"isa is {self.isa!r}; it is default, avx2, avx512 or None")

    __repr__ = redacted_repr

    def for_journal(self) -> dict[str, Any]:
        """Return the settings for the journal: all but a store's options, which may be secret."""
        return {name: value for name, value in vars(self).items() if name != "checkpoint_options"}


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run, completely described.

    Attributes:
        name: the run's name.
        folder: where its journal and checkpoints are, a path or an object store.
        task: the task, or where to import it from.
        task_settings: fields of the task that are set otherwise.
        import_paths: folders that workers add to `sys.path`.
        data, evaluation_data: a Stream, a path, or a reference to a table in Ray's object store;
            evaluation data may be a mapping of several of them by name.
        loggers: the run's loggers, pickled; empty if it has none.
        logger_names: their names in the run.
        group: the sweep to which loggers add the run, or None.
        stop: rules that end it before its last step.
        hash_data: the data's identity is made of hashes of all its bytes.
        is_local: the run is in the driver's process alone, without Ray.
        part_rows, evaluation_rows: samples per logical rank in a step; in one evaluation forward.
        probe: the first rows of the data, which each worker computes to prove itself.
        algorithms: aspects, as data where a worker can import their class.
        retention: which checkpoints are kept.
        identity: what the run's bits depend on.
        resume_from: the checkpoint to start from, as a path or a URL, and its step; or None.
        environment: what the workers' fingerprints were before a resume, and must be again.
        allow_change: they may be others; the run is then marked.
        placement: by what Ray chooses a worker's node, in addition to resources.
        driver: the lifeline of the process that started the run, whose end stops it. Default: the
            run goes on without that process.
        run_id: tells the run from others of its name; the same when it is resumed.
        claim: what its driver and coordinators have in common, and no other owner of its folder.
        secret: known to its processes only. Workers prove by it that they belong together.
        address: of its Ray cluster.
        code: the files of the user's code, as the driver has found them.
        cwd: the driver's working directory.
        initial_weights: where the model's first weights are, and whether those that fit suffice.
    """

    name: str
    folder: Folder
    task: Task | str
    task_settings: Mapping[str, Any]
    import_paths: Sequence[str]
    data: Any
    evaluation_data: Any
    batch_size: int
    logical_ranks: int
    evaluation_rows: int
    probe: Any
    clock: Clock
    seed: int
    algorithms: Sequence[Aspect | Described]
    workers: tuple[int, int]
    resources: Mapping[str, float]
    elastic: ElasticConfig
    faults: Sequence[Fault] = ()
    retention: Retention = Retention()  # noqa: RUF009 - it is frozen
    identity: Mapping[str, Any] = field(default_factory=dict)
    resume_from: tuple[str, int] | None = None
    environment: Fingerprint = field(default_factory=dict)
    allow_change: bool = False
    placement: Mapping[str, Any] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    driver: tuple[str, int, str] | None = None
    run_id: str = ""
    claim: str = ""
    secret: str = field(default_factory=partial(token_hex, 32), repr=False)
    address: str = ""
    code: Code = field(default_factory=dict)
    cwd: str = ""
    hash_data: bool = False
    is_local: bool = False
    loggers: bytes = field(default=b"", repr=False)
    logger_names: Sequence[str] = ()
    group: str | None = None
    initial_weights: tuple[str, bool] | None = None
    stop: Sequence[Rule] = ()

    __repr__ = redacted_repr

    def __reduce__(self) -> tuple[Any, ...]:
        """Unpickle the user's values only after their modules can be imported."""
        from ray import cloudpickle  # noqa: PLC0415 - the values themselves need no Ray

        described = {one.name: getattr(self, one.name) for one in fields(self)}
        return _arrived, (tuple(self.import_paths), cloudpickle.dumps(described))

    @property
    def part_rows(self) -> int:
        """Samples that one logical rank computes in a step."""
        return self.batch_size // self.logical_ranks

    @property
    def checkpoint_store(self) -> Store:
        """Where its checkpoints are."""
        storage = self.elastic.checkpoint_storage
        if not storage:
            return store_of(self.folder)
        return Store(storage, self.elastic.checkpoint_options).inside(check_name(self.name))

    @property
    def node_folder(self) -> Path:
        """The run's folder, or of a run in an object store its folder for files on each node."""
        if isinstance(self.folder, Path):
            return self.folder
        return staging.folder_of(self.run_id)

    def output_folder(self, process: str) -> Path:
        """Return where a process writes files for the run's folder, on its node.

        Args:
            process: its name among those of the run.
        """
        if isinstance(self.folder, Path):
            return self.folder
        return self.node_folder / process

    def manifest_header(self, environment: Fingerprint) -> dict[str, Any]:
        """Return what a checkpoint's manifest says of the run; it holds no secrets."""
        described = {"identity": dict(self.identity), "environment": dict(environment)}
        return {"run": self.name, "run_id": self.run_id, **redacted(described)}

    @property
    def worker_pool(self) -> str | None:
        """The name of the run's worker pool, or None."""
        return self.elastic.worker_pool

    @property
    def threads(self) -> int:
        """Threads per worker."""
        return self.elastic.threads or max(1, int(self.resources.get("CPU", 1)))


def _arrived(import_paths: Sequence[str], described: bytes) -> RunSpec:
    from ray import cloudpickle  # noqa: PLC0415

    import_first(import_paths)
    return RunSpec(**cloudpickle.loads(described))


def import_first(folders: Sequence[str]) -> None:
    """Make this process look for modules in some folders before all others."""
    sys.path[:] = [*folders, *(path for path in sys.path if path not in folders)]


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker that is ready: it has loaded the task and computed the probe.

    Attributes:
        endpoint: where the other workers connect.
        lifeline: where the coordinator connects to watch the worker.
        stacks: the descriptor with which a neighbour reads the worker's stacks.
        warnings: of aspects that found nothing to do in the model.
        code: the files of the user's code that it has loaded.
        flops: of a sample, and the peak of the device.
    """

    pid: int
    node: str
    host: str
    endpoint: tuple[str, int, str]
    lifeline: tuple[str, int, str]
    stacks: int
    fingerprint: Fingerprint
    step: int
    warnings: Sequence[str] = ()
    code: Code = field(default_factory=dict)
    flops: Flops = Flops()  # noqa: RUF009 - it is frozen


@dataclass(frozen=True, kw_only=True)
class WorkerProcess:
    """The process of a worker.

    Attributes:
        pid: its id.
        node: Ray's id of the node.
        host: the node's address.
    """

    pid: int
    node: str
    host: str


@dataclass(frozen=True)
class Unready:
    """A worker on which the task failed before it was ready.

    Attributes:
        error: the user's traceback.
        process: the one in which it runs.
        transient: whether a machine may have caused it, so that another one is tried once.
    """

    error: str
    process: WorkerProcess
    transient: bool = False


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """A worker's state, for a coordinator that was restarted.

    Attributes:
        ready: what it reported when it was ready; None if it is not.
        generation: the last generation that it was in, 0 for none.
        report: how that ended for it; None while it runs.
        step: committed steps of its state.
    """

    ready: Ready | None
    generation: int
    report: "Report | None"
    step: int


@dataclass(frozen=True, kw_only=True)
class CoordinatorHealth:
    """A coordinator's answer to the process that follows its run.

    Attributes:
        unwritten: why the journal cannot be written; empty if it can be.
        unwritten_end: the events of the run's end, if they are not in the journal; else empty.
    """

    unwritten: str = ""
    unwritten_end: Sequence[Event] = ()


@dataclass(frozen=True)
class Assignment:
    """The consecutive logical ranks `[start, stop)` that one worker computes."""

    worker: str
    start: int
    stop: int

    @property
    def ranks(self) -> range:
        """The logical ranks, in order."""
        return range(self.start, self.stop)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The members of a generation, what each computes, and which one heals which.

    Attributes:
        generation: its number, from 1.
        step: committed steps at its start.
        assignments: the workers in order, with their logical ranks.
        healed_by: receiver's place -> source's place; a source may be a receiver itself.
        endpoints: where the members can be reached, in order.
        pause_at: the step after which the generation ends by itself, or None.
        evaluated: whether the evaluation that is due at its start has been done.
        faults: strikes that have not struck yet.
        checkpoint: what the members that heal others load first; None if they have the state.
        bitwise: all members compute the same bits.
        evaluations: step and metrics of those before, if a rule to stop needs them.
        values: of the last step, likewise.
    """

    generation: int
    step: int
    assignments: tuple[Assignment, ...]
    healed_by: Mapping[int, int]
    endpoints: tuple[tuple[str, int, str], ...]
    pause_at: int | None
    evaluated: bool
    faults: Sequence[Fault] = ()
    checkpoint: str | None = None
    bitwise: bool = True
    evaluations: Sequence[tuple[int, Mapping[str, Any]]] = ()
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def ranges(self) -> list[range]:
        """The logical ranks of each member."""
        return [assignment.ranks for assignment in self.assignments]


@dataclass(frozen=True)
class Corruption:
    """Silent data corruption, as all workers of a group found it before an update.

    Attributes:
        step: the committed steps then.
        accused: workers whose state is wrong.
        suspects: two workers of whom one has computed a wrong gradient.
        tie: states differ, and no majority says whose is wrong.
        why: the same in words.
    """

    step: int
    accused: tuple[str, ...]
    suspects: tuple[str, ...]
    tie: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a generation ended for one worker.

    Attributes:
        ending: `finished` (the run's last step is done), `paused`, `aborted` (a peer was lost; the
            state is that of the last committed step), `failed` (an error of the task), `refused`
            (the checkpoint to start from is not whole, or does not fit), or `corrupt` (a worker's
            memory or arithmetic is wrong).
        step: committed steps of the worker's state.
        committed_at: Unix time of the last commit.
        error: the user's traceback, when failed.
        transient: whether a machine may have caused it, so that another one is tried once.
        reason: why it was aborted, the checkpoint refused, or the run finished early.
        digest: of the final state, when finished.
        samples, tokens: trained on since the run began.
        costs: by aspect, what its advice has cost this worker in the generation.
        corruption: what was found before an update, when corrupt.
        seconds: where the time of this worker's training thread went in the generation, up to its
            last commit, by part (`phase_timer.py`).
        settled_at: Unix time up to which `seconds` tells; 0.0 if it does not.
        traffic: files and bytes that its process has fetched or found in the cache since its last
            report.
        formed: whether the worker has reached the state from which the plan starts; until then it
            has its state from before.
    """

    ending: Ending
    step: int
    committed_at: float
    error: str = ""
    transient: bool = False
    reason: str = ""
    digest: str = ""
    samples: int = 0
    tokens: int = 0
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    corruption: Corruption | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    settled_at: float = 0.0
    traffic: Mapping[str, int] = field(default_factory=dict)
    formed: bool = True


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """A worker's answer to the question what it is doing.

    Attributes:
        phase: the phase that it is in.
        waiting: whether it waits there for others.
        age: seconds since it entered the phase.
        waits_for: the place in the group of the member whose message is missing; None if it does
            not wait, or if that is not known.
        stack: the stacks of its threads.
        memory: what its process and its node use, for people; empty if it is not known.
    """

    phase: str
    waiting: bool
    age: float
    waits_for: int | None = None
    stack: str = ""
    memory: str = ""


@dataclass(frozen=True)
class Sighting:
    """What another process of the same node sees of a worker that does not answer.

    Attributes:
        finding: `gone` (there is no such process, or it is a zombie), `stopped`, `stands` (the
            stack of its training thread did not move between two looks), `moves`, `waits` (it
            stands in a wait for other workers), or `unseen` (it could not be looked at).
        stack: the stacks of its threads, or why there are none; for people.
    """

    finding: Finding
    stack: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: one of `ENDS`.
        error: why it failed, for people; the user's traceback first where there is one.
        reason: why it has finished before its last step.
        failed_on: `{worker, node, host, step}` where the task failed; empty otherwise.
        digest: sha256 of the final state; empty if the run failed.
        loss: of the last step, None before the first.
        metrics: of the last evaluation.
        logged: the last value of each name that the task and algorithms have logged.
        generations: `{generation, step, workers, causes, pause_seconds}` each, the causes as
            `{kind, worker, detail}`.
        device_seconds: summed busy time of the workers.
        checkpoint: where the last state is, or None if no worker was left to write it.
        bitwise: whether all workers proved to compute the same bits, also those before a resume.
        faults_left: faults that did not happen.
        samples, tokens: trained on, which may be fewer than were loaded.
        costs: by aspect, `{seconds, acted, idle}` of its advice over all workers.
    """

    state: RunState
    steps: int
    error: str = ""
    reason: str = ""
    failed_on: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    loss: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    logged: Mapping[str, float] = field(default_factory=dict)
    generations: Sequence[Event] = ()
    device_seconds: float = 0.0
    checkpoint: str | None = None
    bitwise: bool = True
    faults_left: int = 0
    samples: int = 0
    tokens: int = 0
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
