"""Which of a cluster's nodes is on this host, whether it lives, and whether an agent watches it.

An agent holds a socket in Linux's abstract namespace, under its node's id. The socket ends with the
process and needs no file. All processes that share the host's network see it, also those in another
container of the same pod.
"""

import os
import socket
import struct
from collections.abc import Sequence

from raytrain_plus.ray_cluster.gcs import ClusterError, Node

_SECONDS = 2.0


def node_here(nodes: Sequence[Node], node_id: str | None = None) -> Node | None:
    """Return the node of this host, or None if it has not joined.

    Args:
        nodes: all of the cluster.
        node_id: which one, if there are several on one host.

    Raises:
        ClusterError: there are several, and `node_id` is None.
    """
    if node_id is not None:
        return next((node for node in nodes if node.node_id == node_id and node.alive), None)
    here = [node for node in nodes if node.alive and node.is_here()]
    if len(here) > 1:
        ids = ", ".join(node.node_id for node in here)
        raise ClusterError(f"there are {len(here)} nodes on this host: give one's --node-id, {ids}")
    return here[0] if here else None


def raylet_lives(node: Node) -> bool:
    """Say whether the raylet of a node on this host still listens."""
    try:
        socket.create_connection((node.address, node.port), timeout=_SECONDS).close()
    except TimeoutError:
        return True  # it is there, but busy
    except OSError:
        return False
    return True


def claim(node_id: str) -> socket.socket:
    """Become the agent of a node, for as long as the socket is kept.

    Raises:
        ClusterError: it has one.
    """
    claimed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claimed.bind(_name(node_id))
    except OSError as error:
        claimed.close()
        raise ClusterError(f"node {node_id} has an agent already: leave it to that one") from error
    claimed.listen()
    return claimed


def has_agent(node_id: str) -> bool:
    """Say whether a node on this host has an agent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(_SECONDS)
        if caller.connect_ex(_name(node_id)) != 0:
            return False
        # Any user of the host can take the name.
        _, user, _ = struct.unpack(
            "3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        return user in (os.getuid(), 0)


def _name(node_id: str) -> str:
    return f"\0raytrain-plus/agent/{node_id}"
