"""Processes that make the rows of a dataset, each row with seeds of its own.

A worker starts them with this module as the program, and talks with them by pipes. They end with
the worker: its end closes the pipes.
"""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import IO, Any

_SIZE = struct.Struct("<Q")
_PATIENCE = 5.0  # seconds for a process to end after its pipes are closed


class RowError(ValueError):
    """A row cannot be made.

    Attributes:
        number: of the row, from 0.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


class RowProcesses:
    """Makes rows in other processes. Thread-safe: an audit reads while the loader reads ahead.

    Args:
        pickled: the dataset, which has `__getitem__`.
        count: how many processes.
    """

    def __init__(self, pickled: bytes, count: int) -> None:
        self._pickled, self._count = pickled, count
        self._running: list[subprocess.Popen[bytes]] = []
        self._reading = threading.Lock()  # an answer belongs to the question before it

    def read(self, numbers: Sequence[int], seeds: Sequence[int] | None = None) -> list[Any]:
        """Return some rows, in the given order.

        Args:
            numbers: of the rows.
            seeds: of the global generators for each row. Default: the numbers.

        Raises:
            RowError: one cannot be made, or a process has ended.
        """
        with self._reading:
            if not self._running:
                self._start()
            return self._read(numbers, numbers if seeds is None else seeds)

    def _read(self, numbers: Sequence[int], seeds: Sequence[int]) -> list[Any]:
        shares = [list(range(i, len(numbers), self._count)) for i in range(self._count)]
        busy = [(p, share) for p, share in zip(self._running, shares, strict=True) if share]
        rows: list[Any] = [None] * len(numbers)
        for process, share in busy:
            try:
                _send(_pipe(process.stdin), [(numbers[i], seeds[i]) for i in share])
            except OSError as error:
                raise self._ended(process, numbers[share[0]]) from error
        failed: RowError | None = None
        for process, share in busy:
            answer = _receive(_pipe(process.stdout))
            if answer is None:
                raise self._ended(process, numbers[share[0]])
            made, said = answer
            if said is not None:
                failed = failed or RowError(*said)
                continue
            for i, row in zip(share, made, strict=True):
                rows[i] = row
        if failed is not None:
            raise failed
        return rows

    def close(self) -> None:
        """End the processes. May be called twice."""
        running, self._running = self._running, []
        for process in running:
            with contextlib.suppress(OSError):
                _pipe(process.stdin).close()
        for process in running:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _pipe(process.stdout).close()

    def _start(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
        for _ in range(self._count):
            self._running.append(
                subprocess.Popen(  # noqa: S603 - this program
                    [sys.executable, "-m", __name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                )
            )
        for process in self._running:
            _pipe(process.stdin).write(_SIZE.pack(len(self._pickled)) + self._pickled)
            _pipe(process.stdin).flush()

    def _ended(self, process: subprocess.Popen[bytes], number: int) -> RowError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        return RowError(
            number,
            f"the process that makes rows has ended (exit status {process.poll()}): what it "
            "printed is above. A negative status is a signal; -9 often means that memory is full.",
        )


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None
    return end


class _Pickler(pickle.Pickler):
    """Pickles a tensor that is a part of a larger one without the rest of that."""

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules["torch"]
        if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes:
            return value.clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


def _send(pipe: IO[bytes], message: Any) -> None:
    content = io.BytesIO()
    _Pickler(content, pickle.HIGHEST_PROTOCOL).dump(message)
    view = content.getbuffer()
    pipe.write(_SIZE.pack(len(view)))
    pipe.write(view)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """Return the next message; None at the end."""
    head = pipe.read(_SIZE.size)
    if len(head) < _SIZE.size:
        return None
    content = pipe.read(_SIZE.unpack(head)[0])
    return pickle.loads(content)  # noqa: S301 - from the process that this one has started


def _serve() -> None:
    """Make rows until the pipe ends."""
    import torch  # noqa: PLC0415 - the worker that imports this module has it

    from raytrain_plus.seeds import seed_global_generators  # noqa: PLC0415

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a dataset prints must not get into the answers
    requests = sys.stdin.buffer
    dataset = _receive(requests)
    while (wanted := _receive(requests)) is not None:
        rows: list[Any] = []
        error = None
        for number, seed in wanted:
            seed_global_generators(seed)
            try:
                rows.append(dataset[number])
            except Exception as failed:  # noqa: BLE001 - the worker tells the user
                sys.stderr.write(traceback.format_exc())
                error = (number, f"it cannot be made: {failed!r}")
                break
        try:
            _send(answers, (None if error else rows, error))
        except (pickle.PicklingError, TypeError, AttributeError) as failed:
            _send(answers, (None, (wanted[0][0], f"its rows cannot be pickled: {failed}")))


if __name__ == "__main__":
    _serve()
