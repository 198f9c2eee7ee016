"""Which errors a machine may have caused."""

import errno
import subprocess

import pytest
import torch

from raytrain_plus.elastic.policy.attribution import may_be_a_machines


class OfALibraryError(Exception):
    pass


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        ConnectionResetError("reset"),
        TimeoutError(),
        FileNotFoundError("on this node"),
        MemoryError(),
        ModuleNotFoundError("no einops"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        subprocess.CalledProcessError(1, "ffmpeg"),
        OfALibraryError("it is busy"),
        chained(ValueError("no vocabulary"), OSError(errno.EIO, "Input/output error")),
    ],
)
def test_errors_that_a_machine_may_have_caused(error):
    assert may_be_a_machines(error)


@pytest.mark.parametrize(
    "error",
    [
        TypeError("forward() takes 2 arguments"),
        ValueError("no such mode"),
        KeyError("label"),
        AttributeError("no attribute"),
        NameError("not defined"),
        AssertionError(),
        ZeroDivisionError(),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x4 and 5x3)"),
        Exception("I give up"),
        SystemExit("no licence"),
        KeyboardInterrupt(),
        OSError(errno.EINVAL, "Invalid argument"),
    ],
)
def test_errors_that_the_code_causes_on_every_machine(error):
    assert not may_be_a_machines(error)
