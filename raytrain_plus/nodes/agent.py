"""The agent of a node: waits for the notice that it will be preempted, and has Ray drain it.

A thread of its own asks each source of notices, so that a source that stalls blocks no other.
"""

import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from raytrain_plus.nodes import local_node
from raytrain_plus.nodes.metadata import NoticeSource
from raytrain_plus.nodes.notices import Notice, is_news
from raytrain_plus.ray_cluster.gcs import ClusterError, Gcs, Node, UnreachableError

Say = Callable[[str], None]

_LOOK = 1.0  # seconds between two looks at the raylet, and between two tries to drain
_GONE = 3  # looks in a row without the raylet, after which the node is gone
_LONGEST_PAUSE = 5.0  # for a source that fails again and again


class Agent:
    """Watches one node.

    Args:
        gcs: the cluster's head.
        sources: where notices come from.
        say: called with one line per event.
    """

    def __init__(self, gcs: Gcs, sources: Sequence[NoticeSource], say: Say) -> None:
        self._gcs = gcs
        self._sources = sources
        self._say = say
        self._notices: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self._known: Notice | None = None
        self._due: Notice | None = None  # the node must still be drained for it
        self._trouble = ""  # why that failed

    def run(self, node_id: str | None, grace: float, patience: float) -> None:
        """Watch until the node is gone, or until it was drained because of a SIGTERM.

        Args:
            node_id: of the node; None for the one on this host.
            grace: seconds from SIGTERM to the end.
            patience: seconds to wait for the node to join.

        Raises:
            ClusterError: it does not join, or has an agent already.
        """
        terminated = threading.Event()

        def terminate(*_: object) -> None:
            terminated.set()
            self._notices.put(Notice("the agent was asked to terminate", time.time() + grace))

        before = signal.signal(signal.SIGTERM, terminate)
        try:
            node = self._await_node(node_id, patience, terminated)
            if node is None:
                return
            with local_node.claim(node.node_id):
                asked = ", ".join(source.name for source in self._sources) or "no service"
                self._say(f"watches node {node.node_id} at {node.address}; asks {asked}")
                for source in self._sources:
                    threading.Thread(target=self._watch, args=(source,), daemon=True).start()
                self._follow(node, terminated)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _await_node(
        self, node_id: str | None, patience: float, terminated: threading.Event
    ) -> Node | None:
        deadline = time.monotonic() + patience
        while not terminated.is_set():
            why = f"no node {node_id or 'of this host'} has joined the cluster {self._gcs.address}"
            try:
                if node := local_node.node_here(self._gcs.nodes(), node_id):
                    return node
            except UnreachableError as error:
                why = str(error)
            if time.monotonic() > deadline:
                raise ClusterError(why)
            terminated.wait(_LOOK)
        return None

    def _follow(self, node: Node, terminated: threading.Event) -> None:
        missed = 0
        while missed < _GONE:
            try:
                self._note(self._notices.get(timeout=_LOOK))
            except queue.Empty:
                missed = 0 if local_node.raylet_lives(node) else missed + 1
            if self._due is not None and self._drained(node, self._due):
                self._due = None
            if terminated.is_set() and self._due is None:
                self._say("ends on request")
                return
        self._say(f"ends: the node's raylet at {node.address}:{node.port} has gone")

    def _note(self, notice: Notice) -> None:
        if is_news(notice, self._known):
            self._known = self._due = notice

    def _drained(self, node: Node, notice: Notice) -> bool:
        """Drain the node; returns whether there is nothing left to do about the notice."""
        left = notice.deadline - time.time()
        try:
            # Ray would refuse a deadline that has passed; the node may live a little longer.
            self._gcs.drain(node.node_id, notice.reason, time.time() + max(left, 1.0))
        except ClusterError as error:
            if str(error) != self._trouble:
                self._say(f"cannot drain the node yet: {error}")
            self._trouble = str(error)
            return left < 0
        until = datetime.fromtimestamp(notice.deadline, UTC).isoformat(timespec="seconds")
        self._say(f"drains the node, which has {left:.0f} s, until {until}: {notice.reason}")
        return True

    def _watch(self, source: NoticeSource) -> None:
        """Ask a source for ever; report trouble when it starts and when it ends."""
        trouble, pause = "", source.pause
        while True:
            try:
                notice = source.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the node has to be watched
                pause = _LONGEST_PAUSE if trouble else source.pause
                if not trouble:
                    self._say(f"{source.name} does not answer as it should: {error}")
                trouble = str(error) or type(error).__name__
            else:
                if trouble:
                    self._say(f"{source.name} answers again")
                trouble, pause = "", source.pause
                if notice is not None:
                    self._notices.put(notice)
            time.sleep(pause)
