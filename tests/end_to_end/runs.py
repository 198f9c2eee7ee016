"""One run and its results: its journal, its summary, and the end of its processes."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from safetensors.torch import load_file
from torch import Tensor

from raytrain_plus import ElasticConfig, ElasticTrainer, Fault, Task, TrainingFailedError
from raytrain_plus.algorithms import Aspect, GradientClipping
from raytrain_plus.chaos import flaws as disturbed
from raytrain_plus.chaos.pace import Pace
from raytrain_plus.names import NAMESPACE
from raytrain_plus.observe import journal
from raytrain_plus.observe.verify import compare

PART_ROWS = 8
STEPS = 100
KEPT = 2  # checkpoints
PATIENCE = 20.0  # seconds for operations that take milliseconds on an idle machine
# For runs without hangs: each step may wait for newcomers as long as they need.
UNHURRIED: dict[str, float] = {"patience": 60.0, "hang_deadline": 180.0}

Event = dict[str, Any]
T = TypeVar("T")


@dataclass
class Run:
    """A run that has ended.

    Attributes:
        events: its journal.
        summary: the trainer's result.
        error: why it failed, empty if it did not.
        pids: the process of each worker that started.
        changed: workers whose process ended or changed before the run had noticed their loss.
        model: the final model's tensors, from its checkpoint.
    """

    events: list[Event] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    model: dict[str, Tensor] = field(default_factory=dict)

    def of(self, event: str, **fields: Any) -> list[Event]:
        """Return the events of a kind, with some values."""
        return [
            e
            for e in self.events
            if e["event"] == event and all(e.get(k) == v for k, v in fields.items())
        ]

    @property
    def sizes(self) -> set[int]:
        """The numbers of workers that have trained."""
        return {event["workers"] for event in self.of("step")}


class Witness:
    """Watches the processes of a run from outside, by the operating system."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.changed: set[str] = set()
        self._began: dict[str, str] = {}
        self._gone: set[str] = set()

    def await_end(self) -> None:
        """Wait until all processes have ended; it is an error if some do not."""
        deadline = time.monotonic() + PATIENCE
        while left := {w: pid for w, pid in self.pids.items() if self._lives(w)}:
            assert time.monotonic() < deadline, f"the run ended and left processes behind: {left}"
            time.sleep(0.02)

    def __call__(self, events: Sequence[Event]) -> None:
        for event in events:
            if event["event"] == "worker" and event["state"] == "ready":
                self.pids[event["worker"]] = event["pid"]
                self._began[event["worker"]] = _began(event["pid"])
            elif event["event"] == "worker" and event["state"] in ("lost", "left", "evicted"):
                self._gone.add(event["worker"])
            elif event["event"] == "end":
                self._gone |= self.pids.keys()
        self.changed |= {w for w in self.pids.keys() - self._gone if not self._lives(w)}

    def _lives(self, worker: str) -> bool:
        # The process id alone is not enough: the system reuses it soon.
        began = _began(self.pids[worker])
        return bool(began) and began == self._began[worker]


class Script:
    """Directs a run: each action runs once, in order, as soon as its condition holds.

    Args:
        acts: pairs of a condition, a function of the events so far, and an action, which is called
            with the run's name.
    """

    def __init__(self, *acts: tuple[Callable[[list[Event]], bool], Callable[[str], Any]]) -> None:
        self._acts = list(acts)

    def __call__(self, name: str, events: list[Event]) -> None:
        while self._acts and self._acts[0][0](events):
            self._acts.pop(0)[1](name)

    @property
    def is_over(self) -> bool:
        """Whether all actions have run."""
        return not self._acts


def at_step(step: int) -> Callable[[list[Event]], bool]:
    """Return the condition that a step has been committed."""
    return lambda events: any(e["event"] == "step" and e["step"] >= step for e in events)


def with_workers(workers: int, generation: int = 1) -> Callable[[list[Event]], bool]:
    """Return the condition that a number of workers trains, in some generation or later."""

    def given(events: list[Event]) -> bool:
        last = [e for e in events if e["event"] == "generation"][-1:]
        return any(e["workers"] == workers and e["generation"] >= generation for e in last)

    return given


def train(
    task: Task,
    storage: Path,
    *,
    logical_ranks: int,
    workers: tuple[int, int] = (1, 1),
    steps: int = STEPS,
    cpus: float = 0.25,
    faults: Sequence[Fault] = (),
    wanted: Mapping[int, int] | None = None,
    patience: float = 2.0,
    aspects: Sequence[Aspect] = (),
    director: Callable[[str, list[Event]], None] | None = None,
    name: str = "",
    resume: bool = False,
    elsewhere: bool = False,
    **elastic: Any,
) -> Run:
    """Train to the end, and wait until all processes of the run have ended.

    Args:
        wanted: see `Pace`; without it no step waits.
        patience: likewise.
        director: called repeatedly with the run's name and its events so far.
        elsewhere: whether the workers are on other machines, where their processes cannot be seen.
        elastic: settings of ElasticConfig.
    """
    name = name or f"run-{uuid.uuid4().hex[:12]}"
    held = [Pace(folder=storage / name, wanted=wanted, patience=patience)] if wanted else []
    witness = Witness()
    run = Run(pids=witness.pids, changed=witness.changed)

    def watch(events: list[Event]) -> None:
        if not elsewhere:
            witness(events)
        run.events += events
        if director is not None:
            director(name, run.events)

    trainer = ElasticTrainer(
        task=task,
        batch_size=PART_ROWS * logical_ranks,
        duration=f"{steps}ba",
        evaluate_every="20ba",
        logical_ranks=logical_ranks,
        algorithms=[GradientClipping(norm=0.5), *held, *aspects],
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": cpus}),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
        ),
        elastic=ElasticConfig(**elastic),
        faults=faults,
        resume=resume,
    )
    try:
        run.summary = trainer.fit(watch).return_value
    except TrainingFailedError as failure:
        run.error, run.summary = str(failure), failure.summary
    finally:
        end(name)
        witness.await_end()
    run.events = journal.read(storage / name)
    if run.summary["checkpoint"]:
        run.model = load_file(Path(run.summary["checkpoint"]) / "model.safetensors")
    return run


@cache
def undisturbed(kind: type[Task], logical_ranks: int, steps: int = STEPS) -> Run:
    """Return the undisturbed run of one worker, computed once."""
    with tempfile.TemporaryDirectory() as storage:
        run = train(kind(), Path(storage), logical_ranks=logical_ranks, steps=steps)
    assert not run.error, run.error
    return run


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Start a separate Ray cluster, even if other clusters run on this machine.

    Within another one it takes the other's place: a new one like it is started afterwards.
    """
    is_within = ray.is_initialized()
    if is_within:
        ray.shutdown()
    _start_ray()
    try:
        yield
    finally:
        ray.shutdown()
        if is_within:
            _start_ray()


def _start_ray() -> None:
    ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        # Otherwise other programs on this machine would starve the workers.
        _system_config={"worker_niceness": 0},
    )


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Run functions two at a time: a worker that starts keeps one of two cores busy."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda call: call(), calls))


def program(module: str, *arguments: Any) -> dict[str, Any]:
    """Run a module that has its own Ray; returns the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def coordinator(name: str) -> Any:
    """Return the handle of a live run's coordinator."""
    return ray.get_actor(name, namespace=NAMESPACE)


def await_events(
    folder: Path, cue: Callable[[list[Event]], bool], process: subprocess.Popen[Any]
) -> None:
    """Wait until a condition on a journal holds; the process that writes it must live."""
    path = folder / journal.FILE_NAME
    while not cue(journal.read(path) if path.exists() else []):
        assert process.poll() is None
        time.sleep(0.1)


def end(name: str) -> None:
    """End a run that has not ended; Ray then ends its workers."""
    with contextlib.suppress(ValueError):
        ray.kill(coordinator(name))


def differences(run: Run, reference: Run) -> list[str]:
    """Return the differences of a run from the undisturbed one: digest, losses, evaluations."""
    if run.error:
        return [f"it failed: {run.error}"]
    found = compare(reference.events, run.events)
    if not run.summary["bitwise"]:
        return ["it is not marked as bitwise"]
    return [] if found.equal else [f"it differs from the undisturbed run: {found.first_difference}"]


def flaws(run: Run, faults: Sequence[Fault]) -> list[str]:
    """Return what is wrong with a disturbed run's journal and processes, apart from its bits."""
    found = disturbed.flaws(run.events, faults)
    hit = {worker for event in run.of("fault") for worker in event["hit"]}
    if run.changed - hit:
        found.append(f"processes of surviving workers changed: {sorted(run.changed - hit)}")
    return found


def _began(pid: int) -> str:
    """Return when a process started, in ticks since boot; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
