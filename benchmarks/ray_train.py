"""The peer in recovery and survival: `ray.train.torch.TorchTrainer` under faults of its workers.

`measure` runs it in a separate process: this module is its program.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchTrainer, prepare_model

from benchmarks.elastic import cluster
from benchmarks.peers import micro_batches, train_step
from benchmarks.tasks import Workload

_CHECKPOINT_EVERY = 20  # steps
_SETTLED = 2.0  # checkpoint intervals from a start to the next fault
_PATIENCE = 60.0  # seconds for one recovery
_TO_SETTLE = 180.0
_POLL = 0.1
FAULTS = ("worker SIGKILL", "worker SIGSTOP", "all workers SIGKILL")

_TUNED = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "5",
}

Log = list[dict[str, Any]]


def measure(
    workload: Workload, workers: int, times: int, *, tuned: bool, fault: str = FAULTS[0]
) -> list[dict[str, Any]]:
    """Inject one of the `FAULTS` several times.

    Returns:
        For each fault the `seconds` until the next step and the steps `lost`. If no step follows
        within a minute, the fault has no entry and is the last.
    """
    command = [sys.executable, "-m", "benchmarks.ray_train", workload.task, fault]
    command += [str(n) for n in (workload.batch_size, workload.logical_ranks, workers, times)]
    environment = {**os.environ, **(_TUNED if tuned else {})}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def train(config: dict[str, Any]) -> None:
    """Train as one worker: Ray Train's user code, with regular checkpoints."""
    torch.set_num_threads(1)
    context = ray.train.get_context()
    workload: Workload = config["workload"]
    task = workload.load()
    model = prepare_model(task.model())
    optimizer = task.optimizer(model)
    done = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, "state.pt"))
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    rank, workers = context.get_world_rank(), context.get_world_size()
    batches = islice(micro_batches(task, workload, rank, workers), done, None)
    with Path(config["log"]).open("a", encoding="utf-8") as log:
        note(log, start=done, rank=rank, pid=os.getpid())
        for step, parts in enumerate(batches, done + 1):
            train_step(model, parts)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if rank == 0:
                note(log, step=step)
            if step % _CHECKPOINT_EVERY == 0:
                save(model, optimizer, step, rank)


def note(log: Any, **fields: Any) -> None:
    """Append a line to the log that all workers share."""
    log.write(json.dumps({"time": time.time(), **fields}) + "\n")
    log.flush()


def save(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, rank: int) -> None:
    """Report a checkpoint, written by the first worker."""
    if rank:
        ray.train.report({"step": step})
        return
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder, "state.pt"))
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step}, checkpoint=checkpoint)


def read(path: Path) -> Log:
    """Return the complete lines of the log."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def inject(path: Path, fault: str, victim: int) -> dict[str, Any] | None:
    """Inject a fault once the group has settled; returns the recovery, None without one."""
    _wait(lambda: _is_settled(read(path)), _TO_SETTLE)
    time.sleep(random.uniform(0.0, 1.0))  # any point between two checkpoints
    starts = {entry["rank"]: entry["pid"] for entry in read(path) if "start" in entry}
    victims = list(starts.values()) if fault == "all workers SIGKILL" else [starts[victim]]
    injected = time.time()
    for pid in victims:
        os.kill(pid, signal.SIGSTOP if fault == "worker SIGSTOP" else signal.SIGKILL)

    def next_step() -> dict[str, Any] | None:
        log = read(path)
        again = [i for i, e in enumerate(log) if "start" in e and e["time"] > injected]
        steps = [e for e in log[again[0] :] if "step" in e] if again else []
        return steps[0] if steps else None

    try:
        after = _wait(next_step, _PATIENCE)
    except TimeoutError:
        return None
    finally:
        for pid in victims:  # nothing else may end a stopped process
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    before = [e for e in read(path) if "step" in e and e["time"] <= injected][-1]
    return {"seconds": after["time"] - injected, "lost": before["step"] - after["step"] + 1}


def _is_settled(log: Log) -> bool:
    starts = [entry for entry in log if "start" in entry and entry["rank"] == 0]
    steps = [entry for entry in log if "step" in entry]
    if not starts or not steps or steps[-1]["time"] < starts[-1]["time"]:
        return False
    return bool(steps[-1]["step"] - starts[-1]["start"] >= _SETTLED * _CHECKPOINT_EVERY)


def _wait(found: Any, patience: float) -> Any:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(_POLL)
    raise TimeoutError(f"Ray Train made no step within {patience:g} s")


def _fit(trainer: TorchTrainer) -> None:
    with contextlib.suppress(ray.exceptions.RayError):  # its cluster is shut down in the end
        trainer.fit()


def main() -> None:
    """Train in the background, inject faults, and print the recoveries."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("numbers", type=int, nargs=4)
    given = parser.parse_args()
    batch_size, logical_ranks, workers, times = given.numbers
    random.seed(0)
    with tempfile.TemporaryDirectory() as storage, cluster(workers):
        log = Path(storage, "log")
        workload = Workload(given.task, batch_size, logical_ranks)
        trainer = TorchTrainer(
            train,
            train_loop_config={"workload": workload, "log": str(log)},
            scaling_config=ray.train.ScalingConfig(num_workers=workers),
            run_config=ray.train.RunConfig(
                storage_path=storage, failure_config=ray.train.FailureConfig(max_failures=-1)
            ),
        )
        threading.Thread(target=_fit, args=(trainer,), daemon=True).start()
        found = []
        for number in range(times):
            recovery = inject(log, given.fault, number % workers)
            if recovery is None:
                break
            found.append(recovery)
    print(json.dumps(found), flush=True)
    os._exit(0)  # the training's thread still runs, without a cluster


if __name__ == "__main__":
    main()
