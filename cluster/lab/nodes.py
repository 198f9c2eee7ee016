"""Ray on the hosts of a lab."""

# ruff: noqa: S603 - the commands are our own
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cluster.lab.hosts import Lab
from cluster.lab.names import LabError

# On a busy machine, Ray's niceness would starve the workers. The hosts have no
# token in common, and no other host is on their network.
ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}

_PORT = 6379
_STORE_BYTES = 100_000_000
_SECONDS = 120.0
_TRIES = 3
_AT_ONCE = 2


def start_head(lab: Lab, host: str) -> None:
    """Start Ray's head, with no room for workers.

    Raises:
        LabError: it does not start.
    """
    _start(lab, host, ["--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=false"])


def start_nodes(lab: Lab, head: str, hosts: Sequence[str]) -> None:
    """Start Ray on hosts, each with room for one worker; returns when all have.

    Raises:
        LabError: one does not start.
    """
    address = f"--address={lab.addresses[head]}:{_PORT}"
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(lambda host: _start(lab, host, [address, "--num-cpus=1"]), hosts))


def _start(lab: Lab, host: str, settings: Sequence[str]) -> None:
    own = [f"--node-ip-address={lab.addresses[host]}", f"--object-store-memory={_STORE_BYTES}"]
    ray = ["ray", "start", *settings, *own, "--disable-usage-stats"]
    for _ in range(_TRIES):
        done = subprocess.run(
            lab.command(host, ray, ENVIRONMENT),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            return
        # Ray gives a node 30 s to come up, for which a machine may be too busy.
        lab.kill(host)
        lab.boot(host)
    raise LabError(f"Ray did not start on {host!r}: {done.stdout}{done.stderr}")
