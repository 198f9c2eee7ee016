"""Whether the task or a machine is to blame for what happens to workers. Pure.

What happens once may be a machine's fault, and another worker takes over. What happens again, to
another worker at the same step, is the task's: the run ends, and says so.

An exception of the task's is tried once on another worker if a machine may have caused it
(`may_be_a_machines`). One that the same code gives with the same data wherever it runs (TypeError,
ValueError, a shape that does not fit) ends the run at once.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

_CRASHES = 2  # processes that crashed at the same step
_EVICTIONS = 2  # times that workers were evicted for the same step
_SHORT = 3  # groups in a row that lost a worker for want of memory at the same step
_ALONE = 5  # workers lost in a row, each alone, for no known reason, at the same step

_CODE = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NameError,
    SyntaxError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
    SystemExit,
    KeyboardInterrupt,
)
_MACHINES = (OSError, MemoryError, EOFError, ImportError)
# What torch says with a plain RuntimeError of a device or of memory.
_WORDS = (
    "cuda", "cudnn", "cublas", "nccl", "hip error", "out of memory", "allocate memory", "device",
    "input/output error", "connection", "timed out", "resource temporarily unavailable",
)  # fmt: skip
_USERS_ERRNO = (errno.EINVAL, errno.EISDIR, errno.ENOTDIR)


def may_be_a_machines(error: BaseException) -> bool:
    """Say whether an exception may be due to the machine that it was raised on.

    Those are operating system errors (EIO, a connection that was reset, a file that is not there),
    MemoryError, EOFError, ImportError, what torch says of devices and memory, and every class of
    exception that is neither Python's nor torch's. Errors that came from such a one count, too.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in _USERS_ERRNO:
            return False
        if isinstance(one, _MACHINES) or _is_of_a_device(one):
            return True
        one = one.__cause__ or one.__context__
    return not isinstance(error, _CODE) and type(error) not in (RuntimeError, Exception)


def _is_of_a_device(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


@dataclass(frozen=True)
class Loss:
    """A worker that was lost in a generation.

    Attributes:
        worker: its name.
        why: what is known of it.
        crashed: its process has crashed, such as with a segmentation fault.
        memory: its process was ended because its node was short of memory.
    """

    worker: str
    why: str
    crashed: bool = False
    memory: bool = False


@dataclass
class Attribution:
    """Remembers what has happened to workers since the last committed step."""

    _step: int = -1
    _crashes: list[Loss] = field(default_factory=list)
    _short: list[Sequence[Loss]] = field(default_factory=list)
    _alone: list[Loss] = field(default_factory=list)
    _errors: dict[int, str] = field(default_factory=dict)
    _evicted: dict[int, list[str]] = field(default_factory=dict)

    def lost(
        self, step: int, losses: Sequence[Loss], *, alone: bool, on_purpose: bool
    ) -> str | None:
        """Note the losses of a generation; returns why the run ends, None if it goes on.

        Args:
            step: committed steps when it ended.
            losses: the workers that were lost.
            alone: the run wants one worker and no more.
            on_purpose: an injected fault has struck in it.
        """
        if step != self._step:
            self._step, self._crashes, self._short, self._alone = step, [], [], []
        if on_purpose:
            return None
        self._crashes += (loss for loss in losses if loss.crashed)
        self._alone = [*self._alone, *losses] if alone and losses else []
        if short := [loss for loss in losses if loss.memory]:
            self._short.append(short)
        if len(self._crashes) >= _CRASHES:
            return (
                f"{_names(self._crashes)} crashed one after the other in step {step + 1}: the task "
                f"is the likely cause, or a library that it uses. The last one: "
                f"{self._crashes[-1].why}"
            )
        if len(self._short) >= _SHORT:
            everyone = [loss for short in self._short for loss in short]
            return (
                f"{_names(everyone)} were ended for want of memory in step {step + 1}, in "
                f"{len(self._short)} groups in a row: this task needs more memory than the nodes "
                "have. Use fewer workers for each node, larger nodes, or a smaller model, batch or "
                f"cache. The last one: {everyone[-1].why}"
            )
        if len(self._alone) >= _ALONE:
            return (
                f"{_names(self._alone)} were lost one after the other in step {step + 1}: the task "
                "is the likely cause. Does it end its process, or need more memory than the node "
                f"has? The last one: {self._alone[-1].why}"
            )
        return None

    def failed(self, step: int, worker: str) -> bool:
        """Note an error that a machine may have caused; returns whether it is the task's.

        Args:
            step: committed steps of the worker.
            worker: on which it was raised.
        """
        before = self._errors.get(step)
        self._errors = {step: worker}
        return before is not None

    def evicted(self, step: int, workers: Sequence[str], *, on_purpose: bool) -> str | None:
        """Note the workers evicted for a step; returns why the run ends, None if it goes on.

        Args:
            step: committed steps when the corruption was found.
            workers: which are evicted.
            on_purpose: an injected fault has struck.
        """
        before = self._evicted.get(step, [])
        if on_purpose or not workers:
            return None
        self._evicted = {step: [*before, ", ".join(workers)]}
        if len(self._evicted[step]) < _EVICTIONS:
            return None
        return (
            f"{' and then '.join(self._evicted[step])} were evicted for step {step + 1}: the "
            "task is the likely cause, not that many machines. Does it change weights outside the "
            "optimizer's step, or draw from a generator of its own?"
        )


def _names(losses: Sequence[Loss]) -> str:
    return ", ".join(loss.worker for loss in losses)
