"""Members of a group as processes that run the functions that a test calls."""

import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future

import torch

from raytrain_plus.training.endpoint import Endpoint
from raytrain_plus.training.transport import Transport

CPU = torch.device("cpu")
HOST = "127.0.0.1"
SECRET = "the run's secret"
PATIENCE = 30  # seconds; only a test that is about to fail waits so long

# One clean process imports torch; the members are forked from it before it starts a thread.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["raytrain_plus.training.transport"])


class MemberProcess:
    """A process that keeps a dictionary, and calls functions with it, each in its own thread."""

    def __init__(self):
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._futures = []
        self.pid = self._process.pid
        threading.Thread(target=self._listen, daemon=True).start()

    def call(self, function, *args):
        """Call `function(kept, *args)` in the process; return a future of the result."""
        future = Future()
        self._futures.append(future)
        self._pipe.send((len(self._futures) - 1, function, args))
        return future

    def do(self, function, *args):
        """Call, and wait for the result."""
        return self.call(function, *args).result(PATIENCE)

    def kill(self):
        self._process.kill()
        self._process.join()

    def halt(self):
        """Stop the process as if it hung: it exists, but does not answer."""
        os.kill(self.pid, signal.SIGSTOP)

    def _listen(self):
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, result, error = self._pipe.recv()
                if error is None:
                    self._futures[number].set_result(result)
                else:
                    self._futures[number].set_exception(error)


def _serve(pipe):
    torch.set_num_threads(1)
    kept, lock = {}, threading.Lock()

    def call(number, function, args):
        try:
            answer = number, function(kept, *args), None
        except Exception as error:  # noqa: BLE001 - it is raised where the test waits
            answer = number, None, error
        with lock:
            pipe.send(answer)

    with contextlib.suppress(EOFError):
        while True:
            threading.Thread(target=call, args=pipe.recv(), daemon=True).start()


def listen(kept):
    """Open the member's endpoint, once; return its address."""
    if "endpoint" not in kept:
        kept["endpoint"] = Endpoint(HOST, SECRET)
    return kept["endpoint"].address


def meet(kept, index, addresses, number=1, generation="first"):
    """Become a member of a generation."""
    transport = kept[generation] = Transport(index, len(addresses), CPU)
    transport.meet(kept["endpoint"], addresses, number)


def abort(kept, reason, generation="first"):
    kept[generation].abort(reason)
