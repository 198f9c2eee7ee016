"""What a user sees of a cluster from outside: a program, since it has its own Ray.

    python -m tests.end_to_end.outside FOLDER

A cluster that requires a token has its dashboard on loopback. A run is submitted there as a job,
watched through it, and stopped by stopping the job; a sweep follows. Then come the mistakes: a
wrong token, wrong addresses, other versions. The run's journal stays in FOLDER/runs/submitted, the
sweep in FOLDER/sweeps/mine. It prints the output of each command as JSON.
"""

# ruff: noqa: T201 - a command
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NAME = "submitted"
TOKEN, WRONG = "a" * 36, "b" * 36
TASK = """
import time
import numpy as np, pyarrow as pa, torch
from torch import nn
from raytrain_plus import Task

class Slow(Task):
    def model(self):
        return nn.Linear(4, 2)
    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)
    def loss(self, outputs, batch):
        time.sleep(0.02)
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")
    def data(self):
        x = np.zeros((256, 4), dtype="float32")
        image = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4)
        return pa.table({"image": image, "label": np.zeros(256, dtype="int64")})
"""

_PATIENCE = 400.0


class Site:
    """The cluster, and a user outside of it.

    Args:
        folder: the user's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "slow.py").write_text(TASK)
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
        os.environ.update(own, PATH=f"{sys.prefix}/bin:{os.environ['PATH']}")
        from ray.cluster_utils import Cluster

        ports = {f"dashboard{of}_port": _free_port() for of in ("", "_agent_listen")}
        web = {"include_dashboard": True, "dashboard_host": "127.0.0.1", **ports}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **web})
        self.head = self._cluster.address
        self.jobs = f"http://127.0.0.1:{ports['dashboard_port']}"

    def say(self, *words: str, **environment: str) -> dict[str, Any]:
        """Run a command of ours; returns its exit status, its output, and how long it took."""
        began = time.monotonic()
        line = [sys.executable, "-m", "raytrain_plus", *words]
        done = subprocess.run(
            line,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
            env={**os.environ, **environment},
        )
        seconds = round(time.monotonic() - began, 2)
        return {
            "status": done.returncode,
            "out": done.stdout,
            "err": done.stderr,
            "seconds": seconds,
        }

    def change_versions(self, **versions: str) -> None:
        """Make the cluster report other versions."""
        from ray._private import ray_constants
        from ray._raylet import GcsClient

        gcs = GcsClient(address=self.head)
        where = {"namespace": ray_constants.KV_NAMESPACE_CLUSTER}
        key = b"CLUSTER_METADATA"
        known = json.loads(gcs.internal_kv_get(key, **where))
        told = json.dumps({**known, **versions}).encode()
        gcs.internal_kv_put(key, told, overwrite=True, **where)

    def close(self) -> None:
        self._cluster.shutdown()


def main(folder: Path) -> None:
    """Run as a command."""
    site = Site(folder)
    try:
        told = {**_submitted(site), "sweep": _swept(site), **_mistaken(site)}
    finally:
        site.close()
    print(json.dumps(told))


def _submitted(site: Site) -> dict[str, Any]:
    from ray.job_submission import JobSubmissionClient

    jobs = JobSubmissionClient(site.jobs)
    storage = f"--storage {site.folder / 'runs'}"
    train = f"raytrain-plus train {site.folder / 'slow.py'}:Slow --batch-size 64 --duration 9000ba"
    job = jobs.submit_job(entrypoint=f"{train} --name {NAME} {storage}")
    _await(lambda: '"event": "step"' in _journal(site), jobs, job)
    there = ["--address", site.jobs, *storage.split()]
    told = {
        "status": site.say("status", NAME, *there, "--json"),
        "for people": site.say("checkpoint", NAME, *there),
        "too many": site.say("scale", NAME, "9", *there),
        "no such run": site.say("stop", "ghost", *there, "--json"),
    }
    jobs.stop_job(job)
    _await(lambda: '"event": "end"' in _journal(site), jobs, job)
    return told


def _swept(site: Site) -> dict[str, Any]:
    """Submit a sweep as its file describes; returns its last output."""
    from ray.job_submission import JobSubmissionClient

    jobs = JobSubmissionClient(site.jobs)
    file = site.folder / "template.py"
    shutil.copy(ROOT / "raytrain_plus/templates/sweep/sweep.py", file)
    swept = f"--budget 60s --storage {site.folder / 'sweeps'} --json"
    job = jobs.submit_job(entrypoint=f"{sys.executable} {file} {swept}")
    _await(lambda: jobs.get_job_status(job).is_terminal(), jobs, job)
    told = [line for line in jobs.get_job_logs(job).splitlines() if line.startswith("{")]
    return {"status": str(jobs.get_job_status(job)), "said": json.loads(told[-1]) if told else {}}


def _mistaken(site: Site) -> dict[str, Any]:
    run, there = ["stop", NAME], ["--address", site.jobs]
    with ThreadingHTTPServer(("127.0.0.1", 0), _Web) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        page = f"127.0.0.1:{web.server_address[1]}"
        told = {
            "wrong token, jobs": site.say(*run, *there, RAY_AUTH_TOKEN=WRONG),
            "wrong token, head": site.say("doctor", "--address", site.head, RAY_AUTH_TOKEN=WRONG),
            "no token, head": site.say("doctor", "--address", site.head, RAY_AUTH_MODE="disabled"),
            "no server, jobs": site.say(*run, "--address", "http://127.0.0.1:1"),
            "no server, head": site.say("doctor", "--address", "127.0.0.1:1"),
            "no server, client": site.say("doctor", "--address", "ray://127.0.0.1:1"),
            "web page, jobs": site.say(*run, "--address", f"http://{page}"),
            "web page, head": site.say("doctor", "--address", page),
            "dashboard, head": site.say("doctor", RAY_ADDRESS=site.jobs.removeprefix("http://")),
            "train, no server": site.say(*_TRAIN, RAY_ADDRESS="127.0.0.1:1"),
            "train, token": site.say(*_TRAIN, RAY_ADDRESS=site.head, RAY_AUTH_TOKEN=WRONG),
            "train, jobs": site.say(*_TRAIN, RAY_ADDRESS=site.jobs),
            "well": site.say("doctor", "--address", site.head),
        }
        web.shutdown()
    site.change_versions(ray_version="2.1.0", python_version="3.9.9")
    told["other versions"] = site.say("doctor", "--address", site.head)
    return told


_TRAIN = ("train", "slow.py:Slow", "--batch-size", "64", "--storage", "elsewhere")


class _Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        pass


def _journal(site: Site) -> str:
    path = site.folder / "runs" / NAME / "journal.jsonl"
    return path.read_text() if path.exists() else ""


def _await(happened: Any, jobs: Any, job: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing came of it: {jobs.get_job_logs(job)}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
