"""Virtual time: a heap of events, which happen one after the other in one thread."""

import heapq
import itertools

_EPOCH = 1_700_000_000.0  # the wall clock starts at a date from which it can go back


class VirtualTime:
    """Replaces the module `time` in the package. Waiting lets the events happen that are due.

    Attributes:
        now: monotonic seconds.
        jump: seconds by which the wall clock differs, after it was set.
        happened: how many events have happened.
        on_event: called before each event, with how many have happened.
    """

    def __init__(self):
        self.now = 1000.0
        self.jump = 0.0
        self.happened = 0
        self.on_event = lambda _: None
        self._events = []
        self._numbers = itertools.count()

    def monotonic(self):
        return self.now

    def time(self):
        return _EPOCH + self.now + self.jump

    def sleep(self, seconds):
        self.run_until(self.now + seconds)

    def after(self, seconds, action, *args):
        """Let `action(*args)` happen later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), action, args))

    def run_until(self, deadline, enough=lambda: False):
        """Let events happen until the deadline, or until it is enough."""
        while not enough():
            if not self._events or self._events[0][0] > deadline:
                self.now = max(self.now, deadline)
                return
            at, _, action, args = heapq.heappop(self._events)
            self.now = max(self.now, at)
            self.happened += 1
            self.on_event(self.happened)
            action(*args)
