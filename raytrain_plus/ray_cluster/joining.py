"""Joins a Ray cluster by its address; an error says at once, in one line, what is wrong."""

import os
import re
import socket
from typing import Any

import ray
from ray.exceptions import RayError

from raytrain_plus.ray_cluster.gcs import (
    ClusterError,
    Gcs,
    NoHeadError,
    UnreachableError,
    present_token,
)
from raytrain_plus.ray_cluster.own_ray import command_without_secrets, signals_as_they_are
from raytrain_plus.ray_cluster.vouched import addresses_of_raylets, last_started, vouched_addresses

RAY_CLIENT = "ray://"

_SECONDS = 5.0
_WEB = ("http://", "https://")
_MISMATCH = re.compile(r"Ray: (\S+)\s+Python: (\S+)\s.*Ray: (\S+)\s+Python: (\S+)", re.DOTALL)


def is_web(address: str | None) -> bool:
    """Say whether an address is that of a cluster's dashboard and jobs API."""
    return address is not None and address.startswith(_WEB)


def head_address(address: str | None = None) -> str | None:
    """Return where Ray's head is, as HOST:PORT, or None if no Ray runs that is known here.

    Args:
        address: HOST:PORT, or `auto` or None: what RAY_ADDRESS says, else the Ray that was last
            started on this host, if it has not died.

    Raises:
        ClusterError: it is no such address.
    """
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "local":
        return None
    if address == "auto":
        return _last_that_lives()
    if is_web(address):
        raise ClusterError(
            f"{address} takes jobs, it cannot be joined: `ray job submit --address {address} -- "
            "raytrain-plus ...` runs a command there"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"{address!r} is not HOST:PORT of Ray's head, such as 10.0.0.1:6379")
    return address


def _last_that_lives() -> str | None:
    """Return the address of the Ray that was last started on this host; None if it is dead.

    A Ray that is killed leaves its address behind. It is dead if none of its daemons is left on
    this host and no head of Ray answers there. If a daemon is left, its head may only be away.
    """
    address = last_started()
    if address is None or address in addresses_of_raylets():
        return address
    try:
        Gcs(address).check()
    except (UnreachableError, NoHeadError):
        return None
    except ClusterError:
        pass  # it answers, but refuses this process: `join` says why
    return address


def trusted(told: str) -> str:
    """Return the address that a run's journal names, if this machine vouches for it.

    Joining a cluster shows it this user's token, and a file with an address may come from anyone.
    So an address in a file is no reason to join.

    Raises:
        ClusterError: no Ray of this user on this machine belongs to a cluster at that address.
    """
    if told in vouched_addresses():
        return told
    raise ClusterError(
        f"its journal names the Ray cluster at {told}, to which no Ray of yours on this machine "
        "belongs. Your token is not shown to an address from a file: if you trust it, give it by "
        f"--address {told}"
    )


def join(address: str | None = None, **settings: Any) -> None:
    """Connect this process to a Ray cluster that is there.

    Args:
        address: ray://HOST:PORT, or as for `head_address`.
        settings: for `ray.init`.

    Raises:
        ClusterError: it cannot be joined.
    """
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, **settings}
    present_token()
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address.startswith(RAY_CLIENT):
        _check_client_server(address)
    else:
        address = _checked_head(address)
    try:
        with signals_as_they_are(), command_without_secrets():
            ray.init(address=address, **quiet)
    except (RuntimeError, OSError, RayError) as error:
        raise ClusterError(_told(address, error)) from error


def draining_nodes() -> set[str]:
    """Return the ids of nodes that Ray is draining.

    Ray has neither an event nor a public call for this.
    """
    return set(ray._private.state.state.get_draining_nodes())  # noqa: SLF001


def _checked_head(address: str | None) -> str:
    head = head_address(address)
    if head is None:
        raise ClusterError("no Ray runs on this host: start it, or give --address")
    gcs = Gcs(head)
    gcs.check()
    if not any(node.alive and node.is_here() for node in gcs.nodes()):
        raise ClusterError(
            f"this machine is no node of the Ray cluster at {head}: from outside, give "
            "--address http://HOST:8265, its dashboard"
        )
    return head


def _check_client_server(address: str) -> None:
    """Check that a server listens; Ray's client would try for half a minute."""
    host, _, port = address.removeprefix(RAY_CLIENT).rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"{address!r} is not ray://HOST:PORT, such as ray://10.0.0.1:10001")
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"no server listens at {address}: {error.strerror or error}. Ray's client server is on "
            "the head, by default on port 10001"
        ) from error


def _told(address: str, error: Exception) -> str:
    text = str(error)
    if "ersion mismatch" in text and (found := _MISMATCH.search(text)):
        theirs, their_python, ours, our_python = found.groups()
        return (
            f"the cluster at {address} runs Ray {theirs} on Python {their_python}, this process "
            f"Ray {ours} on Python {our_python}: they must be the same. Install the cluster's "
            "here, or give --address http://HOST:8265, which runs the command there"
        )
    return f"the Ray cluster at {address} cannot be joined: {text.strip().splitlines()[0]}"
