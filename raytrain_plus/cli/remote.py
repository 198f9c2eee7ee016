"""Runs a command on a cluster's head from outside, as a small job.

Among Ray's interfaces only the jobs API needs no node here, no open port except the dashboard's,
and no equal versions. It accepts the cluster's token, and works through an ssh tunnel.
"""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from raytrain_plus.ray_cluster.gcs import HOW_TO_SHOW, ClusterError, present_token
from raytrain_plus.ray_cluster.joining import is_web

CALLER = "RAYTRAIN_PLUS_CALLER"  # carries this machine's version of raytrain_plus to the head

_POLL = 0.1
_SECONDS = 10.0  # timeout of an answer of the dashboard
_NOT_FOUND = 127
_BEGAN = "Running entrypoint for job"


class RemoteError(RuntimeError):
    """The command failed on the cluster; the message is for people.

    Attributes:
        status: its exit status.
        said: the JSON object that it printed, if any.
    """

    def __init__(self, message: str, status: int, said: dict[str, Any] | None) -> None:
        super().__init__(message)
        self.status = status
        self.said = said


def here_or_there(
    address: str | None, arguments: Sequence[str], here: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Run a command here, or on the head of the cluster whose dashboard is at an address.

    Args:
        address: address as the user gives it.
        arguments: the command's arguments on the head.
        here: runs the command here.

    Raises:
        ClusterError: there is no such cluster, or it does not let this process in.
        RemoteError: the command failed there.
    """
    return run_on_head(address, arguments) if address and is_web(address) else here()


def run_on_head(address: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a raytrain-plus command on a cluster's head; returns the JSON object that it prints.

    Args:
        address: address of the dashboard, such as http://head:8265.
        arguments: the command's arguments, without `raytrain-plus` and `--json`.

    Raises:
        ClusterError: there is no such cluster, or it does not let this process in.
        RemoteError: the command failed there.
    """
    jobs = _Jobs(address)
    command = shlex.join(["raytrain-plus", *arguments, "--json"])
    job = jobs.submit(f"{CALLER}={version('raytrain-plus')} exec {command}")
    try:
        while not (status := jobs.status(job)).is_over:
            time.sleep(_POLL)
    except BaseException:
        jobs.stop(job)
        raise
    said, lines = _parted(jobs.logs(job))
    if status.code == 0 and said is not None:
        return said
    if status.code == _NOT_FOUND:
        raise ClusterError(
            f"the head at {address} has no raytrain-plus on its PATH: install it there "
            "(setup_commands of the launch file)"
        )
    told = [line.removeprefix("error: ") for line in lines if line.strip()]
    raise RemoteError("\n".join(told) or status.message, status.code or 1, said)


class _Status:
    def __init__(self, details: Any) -> None:
        self.is_over: bool = details.status.is_terminal()
        self.code: int | None = details.driver_exit_code
        self.message: str = details.message or f"the command ended as {details.status}"


class _Jobs:
    """A cluster's jobs, with errors for people."""

    def __init__(self, address: str) -> None:
        # The import takes a second, and only calls from outside need it.
        from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

        present_token()
        self._address = address
        self._client = self._told(lambda: JobSubmissionClient(address))

    def submit(self, command: str) -> str:
        job: str = self._told(lambda: self._client.submit_job(entrypoint=command))
        return job

    def status(self, job: str) -> _Status:
        return _Status(self._told(lambda: self._client.get_job_info(job)))

    def logs(self, job: str) -> str:
        logs: str = self._told(lambda: self._client.get_job_logs(job))
        return logs

    def stop(self, job: str) -> None:
        self._told(lambda: self._client.stop_job(job))

    def _told(self, ask: Callable[[], Any]) -> Any:
        from ray.exceptions import AuthenticationError  # noqa: PLC0415

        try:
            return ask()
        except AuthenticationError as error:
            raise ClusterError(
                f"the cluster at {self._address} does not accept this machine's token: "
                f"{HOW_TO_SHOW}"
            ) from error
        except ValueError as error:  # the answer is not JSON, or the address is invalid
            raise ClusterError(
                f"{self._address} is not Ray's dashboard: it answers something else ({error})"
            ) from error
        except OSError as error:
            raise ClusterError(
                f"no server listens at {self._address}: is the dashboard running there, and is the "
                "port right? The default is 8265."
            ) from error
        except RuntimeError as error:
            line = str(error).splitlines()[0]
            raise ClusterError(f"Ray's jobs at {self._address} do not answer: {line}") from error


def _parted(logs: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Split a command's output into the JSON object of its last line and the lines before."""
    lines = logs.splitlines()
    began = [number for number, line in enumerate(lines, 1) if line.startswith(_BEGAN)]
    lines = lines[began[0] if began else 0 :]  # the lines before are Ray's own about the job
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("{"):
            try:
                return json.loads(lines[index]), lines[:index]
            except (ValueError, RecursionError):
                continue
    return None, lines
