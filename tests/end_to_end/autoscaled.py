"""A run on a cluster whose autoscaler adds nodes when they are wanted and removes idle ones.

    python -m tests.end_to_end.autoscaled STORAGE

It runs on a host of a lab, because the nodes are processes, and only the end of their host ends
them for certain. Ray's head has room for one worker, and Ray's fake provider makes nodes of one CPU
each. It prints as JSON the run's summary and the numbers of nodes: before, in a run that wants one
worker, at most, and in the end.
"""

# ruff: noqa: T201 - a command
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cluster.lab.hosts import Lab

HOST = "head"
NAME = "autoscaled"
MOST = 3
STEPS = 100
LOGICAL_RANKS = 6
ADDED = 2  # the most nodes that the provider makes

_IDLE_MINUTES = 0.1
_PATIENCE = 120.0
_CONFIG: dict[str, Any] = {
    "cluster_name": "autoscaled",
    "max_workers": ADDED,
    "idle_timeout_minutes": _IDLE_MINUTES,
    "upscaling_speed": 1.0,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,  # all nodes share one address
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "ray.worker.one": {
            "resources": {"CPU": 1, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": ADDED,
        },
    },
    "auth": {},
    "docker": {},
    **{
        f"{part}{commands}": []
        for part in ("", "head_", "worker_")
        for commands in ("setup_commands", "start_ray_commands")
    },
    "initialization_commands": [],
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "head_node": {},
    "worker_nodes": {},
}
_ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "0",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


def main(storage: Path) -> None:
    """Run as a command."""
    with Lab.of(storage / "hosts", [HOST], visible=[storage]) as lab:
        config = storage / "autoscaling.yaml"
        config.write_text(json.dumps(_CONFIG))  # JSON is YAML
        ray = ["ray", "start", "--head", "--num-cpus=1", "--disable-usage-stats"]
        own = [f"--node-ip-address={lab.addresses[HOST]}", "--object-store-memory=100000000"]
        _on(lab, [*ray, *own, f"--autoscaling-config={config}"])
        line = [sys.executable, "-m", __spec__.name, "--driver", str(storage)]
        print(_on(lab, line).splitlines()[-1])


def drive(storage: Path) -> None:
    """Train, and count the nodes meanwhile: the driver's program on the host."""
    import ray

    from .runs import UNHURRIED, train
    from .tasks import Plain

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    counts = [_nodes(ray)]
    how: dict[str, Any] = {"logical_ranks": LOGICAL_RANKS, "cpus": 1, "elsewhere": True}
    look = lambda *_: counts.append(_nodes(ray))  # noqa: E731
    train(Plain(), storage, steps=20, workers=(1, 1), name="alone", director=look, **how)
    alone = max(counts)
    more = {"workers": (1, MOST), "wanted": {40: MOST}, **UNHURRIED}
    run = train(Plain(), storage, steps=STEPS, name=NAME, director=look, **how, **more)
    most = max(counts)
    deadline = time.monotonic() + _PATIENCE
    while _nodes(ray) > counts[0] and time.monotonic() < deadline:
        time.sleep(0.5)
    nodes = {"before": counts[0], "alone": alone, "most": most, "after": _nodes(ray)}
    print(json.dumps({"nodes": nodes, "summary": run.summary, "error": run.error}))


def _nodes(ray: Any) -> int:
    return sum(node["Alive"] for node in ray.nodes())


def _on(lab: Lab, command: list[str]) -> str:
    done = subprocess.run(
        lab.command(HOST, command, _ENVIRONMENT), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    if sys.argv[1] == "--driver":
        drive(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
