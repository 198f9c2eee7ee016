"""A cluster as a user has it: launched by ssh, used from a laptop, with machines that come and go.

    python -m tests.end_to_end.cluster_run FOLDER

The hosts are those of a lab in FOLDER/lab. All commands run on `laptop`: `ray up cluster.yaml` with
a head and two workers, data written to an S3 server, a job submitted. During the job, one worker's
host loses its power, a third is started by hand, and another is drained. Then `ray down`. It prints
the results and the time of each part as JSON.
"""

# ruff: noqa: T201 - a command
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.lab.hosts import Lab
from raytrain_plus.observe import journal

from .runs import Event

LAB = "lab"  # its folder
LAPTOP, HEAD, LATE = "laptop", "head", "n3"
LAUNCHED = ("n1", "n2")
NAME, ALONE = "disturbed", "undisturbed"

_ROOT = Path(__file__).parents[2]
_JOB = Path(__file__).with_name("job")
_SETTLED = 20  # steps of a whole group before it is disturbed
_PATIENCE = 150.0  # seconds for any operation
_DOWN = 90.0  # seconds until no process of a cluster may be left
_POLL = 0.05
_HURRY = "s3://data/hurry"  # the object that lets the run go on at full speed
_JOBS = "http://127.0.0.1:8265"  # the laptop's end of the tunnel
_TRAIN = (
    "raytrain-plus train digits.py:Digits --data s3://data/digits --evaluation-data s3://data/held "
    "--logical-ranks 4 --batch-size 64 --duration 20ep --evaluate-every 5ep --storage /root/runs "
    "--checkpoint-storage s3://kept --cpus 2 --threads 1 --json"
)
# Files that the owner of the machines would install in another way.
_S3_PORT = 18333
_CREDENTIALS = "[default]\naws_access_key_id = AK\naws_secret_access_key = SK\n"
_S3_CONFIGURATION = "[default]\nendpoint_url = http://{}:{}\nregion = us-east-1\n"


class Cluster:
    """A user's actions on the laptop, and what the user sees.

    Args:
        lab: the lab; its hosts are new: only ssh runs on them.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.took: dict[str, float] = {}

    def on(self, host: str, line: str, *, fails: bool = False) -> str:
        """Run a shell command on a host; returns its output.

        Args:
            fails: whether the command may fail.
        """
        login = ["bash", "--login", "-c", f"cd; source .bashrc; {line}"]
        done = subprocess.run(
            self._lab.command(host, login, {"RAY_AUTH_MODE": "token"}),
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        if done.returncode and not fails:
            raise RuntimeError(f"`{line}` on {host} failed:\n{done.stdout[-4000:]}{done.stderr}")
        return done.stdout

    def json_of(self, line: str, *, fails: bool = False) -> Any:
        """Run a command on the laptop; returns the JSON of its last line."""
        return json.loads(self.on(LAPTOP, line, fails=fails).splitlines()[-1])

    def launch(self) -> None:
        """Fill in the launch file and start the cluster, twice, as users do."""
        text = filled((_ROOT / "cluster.yaml").read_text(), self._lab.addresses)
        self._home(LAPTOP).joinpath("cluster.yaml").write_text(text)
        self.on(LAPTOP, "umask 077; ray get-auth-token --generate")
        up = f"cd {shlex.quote(str(_ROOT))}; ray up --yes ~/cluster.yaml"
        began = time.monotonic()
        self.on(LAPTOP, up)
        self.took["ray up"] = time.monotonic() - began
        self.on(LAPTOP, f"ssh -f -N -L 8265:127.0.0.1:8265 {HEAD}")
        self.await_nodes(1 + len(LAUNCHED))
        self.took["all nodes joined"] = time.monotonic() - began
        self.on(LAPTOP, f"{up} --no-restart")
        self.await_nodes(1 + len(LAUNCHED))

    def await_nodes(self, number: int) -> None:
        """Wait until the doctor finds the given number of nodes, and no problems."""
        line = f"raytrain-plus doctor --address {_JOBS} --expect {number} --json"
        _await(lambda: not self.json_of(line, fails=True)["problems"] or None, line)

    def write_data(self) -> None:
        """Start an S3 server on the head's host and write the data there, from the laptop."""
        address = self._lab.addresses[HEAD]
        for host in self._lab.addresses:
            self.put_secrets(host)
        flags = {"dir": "/root/s3", "ip": address, "ip.bind": address, "s3.port": _S3_PORT}
        quiet = {"master.telemetry": "false", "admin.ui": "false", "webdav": "false"}
        none = {"s3.port.iceberg": 0, "s3.port.lance": 0}
        words = [f"-{name}={value}" for name, value in {**flags, **quiet, **none}.items()]
        self.on(
            HEAD,
            "mkdir s3; AWS_ACCESS_KEY_ID=AK AWS_SECRET_ACCESS_KEY=SK "
            f"setsid weed mini {shlex.join(words)} >s3.log 2>&1 </dev/null &",
        )
        for path in _JOB.iterdir():
            if path.is_file():
                self._home(LAPTOP, "job").joinpath(path.name).write_text(path.read_text())
        _await(lambda: "ready" in self.on(LAPTOP, "cd job; python data.py", fails=True), "S3")
        for part in ("digits", "held"):
            self.on(LAPTOP, f"cd job; raytrain-plus data write {part}.parquet s3://data/{part}")

    def put_secrets(self, host: str) -> None:
        """Give a host access to the S3 server's buckets."""
        told = _S3_CONFIGURATION.format(self._lab.addresses[HEAD], _S3_PORT)
        folder = self._home(host, ".aws")
        (folder / "credentials").write_text(_CREDENTIALS)
        (folder / "config").write_text(told)

    def submit(self, name: str, more: str) -> str:
        """Submit a job that trains; returns its id."""
        began = time.time()
        said = self.on(
            LAPTOP,
            f"cd job; ray job submit --no-wait --address {_JOBS} --working-dir . "
            f"-- {_TRAIN} --name {name} {more}",
        )
        self.await_events(name, lambda events: _steps(events)[:1] or None)
        self.took["submit to first step"] = _steps(self.events(name))[0]["time"] - began
        return re.findall(r"raysubmit_\w+", said)[0]

    def events(self, name: str) -> list[Event]:
        """Return a run's journal, which is on the head."""
        path = self._home(HEAD) / "runs" / name / journal.FILE_NAME
        return journal.read(path) if path.exists() else []

    def await_events(self, name: str, answer: Callable[[list[Event]], Any]) -> Any:
        """Wait until a function of a run's journal returns a value."""
        return _await(lambda: answer(self.events(name)), f"run {name}")

    def settle(self, workers: int) -> int:
        """Wait until the given number of workers has trained for a while; returns the last step."""

        def settled(events: list[Event]) -> int | None:
            last = [event for event in events if event["event"] == "generation"][-1:]
            for generation in last:
                steps = _steps(events, generation["generation"])
                if generation["workers"] == workers and len(steps) >= _SETTLED:
                    return int(steps[-1]["step"])
            return None

        return int(self.await_events(NAME, settled))

    def lose(self, host: str) -> None:
        """Cut a host's power, and wait for the next step."""
        before = self._generation()
        at = time.time()
        self._lab.kill(host)
        step = self.await_events(NAME, lambda events: _steps_after(events, before) or None)[0]
        self.took["power-off to next step"] = step["time"] - at

    def start_by_hand(self, host: str) -> None:
        """Start Ray on a host that is in no launch file, and wait until it trains."""
        token = self._home(LAPTOP) / ".ray" / "auth_token"
        (self._home(host, ".ray") / "auth_token").write_text(token.read_text())
        before = self._generation()
        at = time.time()
        start = shlex.quote(str(_ROOT / "cluster" / "start.sh"))
        self.on(
            host,
            f"RAY_gcs_rpc_server_reconnect_timeout_s=20 {start} "
            f"ray start --address={HEAD}:6379 --disable-usage-stats",
        )
        step = self.await_events(NAME, lambda events: _steps_after(events, before) or None)[0]
        self.took["new host to first contribution"] = step["time"] - at

    def drain(self, host: str) -> None:
        """Tell Ray that a host will be removed, and wait until its worker has left."""
        nodes = self.json_of(f"raytrain-plus doctor --address {_JOBS} --json", fails=True)
        node = next(
            n["node_id"] for n in nodes["nodes"] if n["address"] == self._lab.addresses[host]
        )
        self.on(
            HEAD,
            f"ray drain-node --address {self._lab.addresses[HEAD]}:6379 --node-id {node} "
            "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'spot notice' "
            "--deadline-remaining-seconds 60",
        )
        self.await_events(
            NAME,
            lambda events: (
                [e for e in events if e["event"] == "worker" and e["state"] == "left"] or None
            ),
        )

    def hurry(self) -> None:
        """Let the run go on at full speed."""
        self.on(LAPTOP, f'python -c \'import fsspec; fsspec.open("{_HURRY}", "w").open()\'')

    def finish(self, job: str) -> None:
        """Wait until a job has ended."""
        line = f"ray job logs --address {_JOBS} --follow {job}"
        said = self.on(LAPTOP, line, fails=True)
        if "succeeded" not in said:
            raise RuntimeError(f"the job did not succeed:\n{said[-4000:]}")

    def down(self, lost: str) -> dict[str, dict[str, list[str]]]:
        """Shut the cluster down; returns the processes of Ray and ours, before and after.

        Args:
            lost: the host without power.
        """
        before = self._processes(lost)
        self.on(LAPTOP, "ray down --yes cluster.yaml")
        deadline = time.monotonic() + _DOWN
        while (left := self._processes(lost)) and time.monotonic() < deadline:
            time.sleep(_POLL)
        return {"before": before, "after": left}

    def _processes(self, lost: str) -> dict[str, list[str]]:
        """Return the running processes by host, without hosts that have none."""
        listing = r"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' '"
        listed = {
            host: set(re.findall(r"raylet|gcs_server|ray::|node-agent", self.on(host, listing)))
            for host in self._lab.addresses
            if host != lost
        }
        return {host: sorted(found) for host, found in listed.items() if found}

    def _generation(self) -> int:
        known = [e for e in self.events(NAME) if e["event"] == "generation"]
        return int(known[-1]["generation"])

    def _home(self, host: str, inside: str = "") -> Path:
        folder = self._lab.folder / host / "disk" / "root" / inside
        folder.mkdir(exist_ok=True)
        return folder


def filled(text: str, addresses: dict[str, str]) -> str:
    """Fill in the three lines of the launch file, and where the hosts' environment is."""
    workers = [addresses[host] for host in LAUNCHED]
    for key, value in {
        "head_ip": addresses[HEAD],
        "worker_ips": json.dumps(workers),
        "ssh_user": "root",
    }.items():
        text, count = re.subn(rf"(?m)^(\s*{key}:).*$", rf"\1 {value}", text)
        if count != 1:
            raise RuntimeError(f"cluster.yaml has {count} lines of {key}")
    return text


def _steps(events: Sequence[Event], generation: int | None = None) -> list[Event]:
    return [
        event
        for event in events
        if event["event"] == "step" and generation in (None, event["generation"])
    ]


def _steps_after(events: Sequence[Event], generation: int) -> list[Event]:
    return [event for event in _steps(events) if event["generation"] > generation]


def _await(answer: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + _PATIENCE
    while not (found := answer()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing came of it within {_PATIENCE} s: {what}")
        time.sleep(_POLL)
    return found


def main(folder: Path) -> None:
    """Run as a command."""
    with Lab.of(folder / LAB, [LAPTOP, HEAD, *LAUNCHED, LATE], with_ssh=True) as lab:
        cluster = Cluster(lab)
        cluster.launch()
        cluster.write_data()
        cluster.finish(cluster.submit(ALONE, "--workers 1"))
        job = cluster.submit(NAME, f"--workers 1:3 --setting pace=0.1 --setting hurry={_HURRY}")
        cluster.settle(3)
        cluster.lose(LAUNCHED[0])
        cluster.start_by_hand(LATE)
        cluster.settle(3)
        cluster.drain(LAUNCHED[1])
        status = cluster.json_of(
            f"raytrain-plus status {NAME} --storage runs --address {_JOBS} --json"
        )
        cluster.hurry()
        cluster.finish(job)
        told = {
            "events": {name: cluster.events(name) for name in (NAME, ALONE)},
            "status": status,
            "processes": cluster.down(LAUNCHED[0]),
            "took": {what: round(seconds, 2) for what, seconds in cluster.took.items()},
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
