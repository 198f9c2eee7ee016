"""A worker's process: what its bits depend on, and how it tells of the user's errors."""

import ctypes
import os
import traceback
from pathlib import Path

import ray
import torch

from raytrain_plus.training import nccl

USERS = (Exception, SystemExit, KeyboardInterrupt)
"""What a task's code may raise, and what ends neither the worker nor its process."""

CODE_THAT_MAY_EXIT = (
    str(Path(__file__).parents[2]),
    str(Path(ray.__file__).parent),
    str(Path(os.__file__).parent / "multiprocessing"),
)
"""Folders whose code may end a worker's process."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def prepare_process(threads: int, *, gpu: bool) -> torch.device:
    """Set what the bits depend on in this process; returns the device to compute on.

    Args:
        threads: to compute with.
        gpu: compute on a GPU.
    """
    _keep_freed_memory()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    if not gpu:
        return torch.device("cpu")
    os.environ.update(nccl.environment(os.environ))  # read when CUDA and NCCL start
    torch.cuda.init()  # type: ignore[no-untyped-call]  # its generators can be seeded only then
    return torch.device("cuda", 0)


def _keep_freed_memory() -> None:
    """Let glibc's malloc keep what a step frees for the next step.

    It would return large blocks to the system and take them again, at the price of a page fault
    for each 4 KB: a tenth of a step's time for some models.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def users_traceback(error: BaseException) -> str:
    """Return the traceback of an error from the first line that is neither ours nor Ray's.

    An error of ours that no line of the user's has led to says what is wrong by itself.
    """
    frames = traceback.extract_tb(error.__traceback__)
    below = (str(Path(__file__).parents[2]), str(Path(ray.__file__).parent))
    users = [i for i, f in enumerate(frames) if not f.filename.startswith(below)]
    if not users and type(error).__module__.startswith("raytrain_plus."):
        return f"{type(error).__name__}: {error}"
    skipped = users[0] if users else 0
    return "".join(
        [
            "Traceback (most recent call last):\n",
            *traceback.format_list(frames[skipped:]),
            *traceback.format_exception_only(error),
        ]
    )
