"""What Ray's head answers over the network to a process that has not joined the cluster.

Ray's own client of the head tries for 40 s if no server listens, and ends its process when the head
has been away for a minute. Here Ray's messages go over plain gRPC: an answer or an error comes at
once, and errors are of different kinds.
"""

import importlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import autoscaler_pb2, autoscaler_pb2_grpc
from ray.core.generated import gcs_service_pb2 as messages
from ray.core.generated import gcs_service_pb2_grpc as services
from ray.exceptions import AuthenticationError

SECONDS = 5.0  # for an answer

HOW_TO_SHOW = (
    "put its token into ~/.ray/auth_token, or name the file in RAY_AUTH_TOKEN_PATH, and set "
    "RAY_AUTH_MODE=token; `ray get-auth-token` on a node of the cluster prints it"
)


class ClusterError(RuntimeError):
    """A Ray cluster that cannot be joined; the message is for people."""


class UnreachableError(ClusterError):
    """One that does not answer now, but may soon."""


class NoHeadError(ClusterError):
    """Something else than Ray's head answers at an address."""


@dataclass(frozen=True)
class Node:
    """A node as Ray's head knows it.

    Attributes:
        node_id: Ray's id of it, in hexadecimal.
        host: its host's name.
        address: its host's address.
        port: of its raylet.
        alive: it has joined, and has not gone.
        is_head: it is the head.
    """

    node_id: str
    host: str
    address: str
    port: int
    alive: bool
    is_head: bool

    def is_here(self) -> bool:
        """Say whether it is on this host: only then can a socket be bound to its address."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as tried:
            try:
                tried.bind((self.address, 0))
            except OSError:
                return False
        return True


class Gcs:
    """Ray's head ("global control service").

    Args:
        address: as HOST:PORT.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def check(self) -> None:
        """Check that Ray's head is there and accepts this process.

        Raises:
            ClusterError: it is not, or does not.
        """
        self._ask(
            lambda channel: services.NodeInfoGcsServiceStub(channel).GetClusterId,
            messages.GetClusterIdRequest(),
        )

    def nodes(self) -> list[Node]:
        """Return all nodes that have ever joined.

        Raises:
            ClusterError: the head does not answer.
        """
        answer = self._ask(
            lambda channel: services.NodeInfoGcsServiceStub(channel).GetAllNodeInfo,
            messages.GetAllNodeInfoRequest(),
        )
        return [
            Node(
                node_id=info.node_id.hex(),
                host=info.node_manager_hostname,
                address=info.node_manager_address,
                port=info.node_manager_port,
                alive=info.state == info.ALIVE,
                is_head=info.is_head_node,
            )
            for info in answer.node_info_list
        ]

    def drain(self, node_id: str, reason: str, deadline: float) -> None:
        """Make Ray drain a node that will be preempted: Ray places nothing new there.

        Args:
            node_id: in hexadecimal.
            reason: for people.
            deadline: when the node will be gone, in seconds since 1970.

        Raises:
            ClusterError: the head does not answer, or refuses.
        """
        answer = self._ask(
            lambda channel: autoscaler_pb2_grpc.AutoscalerStateServiceStub(channel).DrainNode,
            autoscaler_pb2.DrainNodeRequest(
                node_id=bytes.fromhex(node_id),
                reason=autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
                reason_message=reason,
                deadline_timestamp_ms=int(1000 * deadline),
            ),
        )
        if not answer.is_accepted:
            why = answer.rejection_reason_message
            raise ClusterError(f"Ray does not drain node {node_id}: {why}")

    def _ask(self, method: Callable[[Any], Any], request: Any) -> Any:
        present_token()
        direct = [("grpc.enable_http_proxy", 0)]
        try:
            with init_grpc_channel(self.address, options=direct) as channel:
                return method(channel)(request, timeout=SECONDS)
        except grpc.RpcError as error:
            raise _explained(self.address, error) from error
        except AuthenticationError as error:
            raise ClusterError(
                f"RAY_AUTH_MODE is token, but this machine has none for the Ray cluster at "
                f"{self.address}: {HOW_TO_SHOW}"
            ) from error


def present_token() -> None:
    """Make this process show the token of `~/.ray`, if there is one.

    A cluster that `ray.init` starts asks for the token. A process that joins by address does not
    show it unless RAY_AUTH_MODE says so from the start.
    """
    module = importlib.import_module("ray._private.authentication.authentication_token_setup")
    logging.getLogger(module.__name__).setLevel(logging.ERROR)
    module.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _explained(address: str, error: Any) -> ClusterError:
    """Return an error that says in one line why the head does not answer."""
    code, details = error.code(), str(error.details() or "")
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return ClusterError(
            f"the Ray cluster at {address} does not accept this machine's token: {HOW_TO_SHOW}"
        )
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return NoHeadError(
            f"{address} is not Ray's head, though it speaks its protocol: give HOST:PORT of "
            "`ray start --head`, whose default port is 6379"
        )
    if "http1.x" in details:
        return NoHeadError(
            f"{address} is not Ray's head but a web server: for Ray's dashboard, write "
            f"http://{address}"
        )
    if "HTTP/2" in details:
        return NoHeadError(f"{address} is not Ray's head: something else listens there")
    if "resolving" in details or "lookup" in details:
        return UnreachableError(f"no host of the name in {address} is known here: check it")
    if "refused" in details:
        return UnreachableError(
            f"no server listens at {address}: is Ray running there, and is the port right?"
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED or "timed out" in details.lower():
        return UnreachableError(
            f"{address} does not answer within {SECONDS:g} s: is the host up, does a firewall "
            "keep it from here, and is it Ray's head?"
        )
    return UnreachableError(f"{address} does not answer as Ray's head does: {details or code.name}")
