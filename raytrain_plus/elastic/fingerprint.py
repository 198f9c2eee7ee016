"""A newcomer proves that it computes the same bits as the group."""

import hashlib
import platform
from importlib.metadata import version

import numpy as np
import torch

from raytrain_plus.elastic.messages import Fingerprint
from raytrain_plus.task import Batch
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import tensor_bytes


def fingerprint(loop: TrainingLoop, batch: Batch, device: torch.device) -> Fingerprint:
    """Describe how this process computes, by versions and by a probe of the real model.

    The probe is the leaf (gradient and buffer changes) of one part of real data, on the model as
    it is built from the seed; a library build, an instruction set, a number of threads or a broken
    core that gives other bits shows in it.
    """
    built = loop.replica.digest()
    hashed = hashlib.sha256()
    for tensor in loop.probe(batch):
        hashed.update(tensor_bytes(tensor))
    on_cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "raytrain_plus": version("raytrain-plus"),
        "device": torch.cuda.get_device_name(device) if on_cuda else platform.machine(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "initial model": built,
        "probe gradient": hashed.hexdigest(),
    }


def difference(group: Fingerprint, newcomer: Fingerprint) -> str:
    """Say in what a newcomer differs from the group; empty if in nothing."""
    differing = [
        f"{key} is {_short(newcomer.get(key, 'unknown'))}, the group's is {_short(value)}"
        for key, value in group.items()
        if newcomer.get(key) != value
    ]
    return "; ".join(differing)


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value
