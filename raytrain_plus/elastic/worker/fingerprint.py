"""A newcomer's proof that it computes the same bits as the group."""

import hashlib
import platform
from importlib.metadata import version

import numpy as np
import torch

from raytrain_plus.elastic.protocol.messages import Fingerprint
from raytrain_plus.task import Batch, TaskError
from raytrain_plus.training.loop import TrainingLoop
from raytrain_plus.training.state import tensor_bytes


def fingerprint(loop: TrainingLoop, batch: Batch, device: torch.device) -> Fingerprint:
    """Describe how this process computes, by versions and by a probe of the real model.

    The probe is the gradient and the buffer changes of one part of real data, on the model as it is
    built from the seed. It shows a library build, an instruction set, a number of threads or a
    broken core that gives other bits. On an accelerator it is computed twice, because kernels that
    add by atomic operations give other bits each time.

    Raises:
        TaskError: the task computes other bits the second time.
    """
    built = loop.replica.digest(with_frozen=True)
    probed = _probed(loop, batch)
    if device.type != "cpu" and _probed(loop, batch) != probed:
        raise TaskError(
            f"the task computes other gradients when it computes the same part twice on {device}: "
            "an operation of its forward or backward is not deterministic there. Replace it by one "
            "that is (torch.use_deterministic_algorithms names those that torch knows of)"
        )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "raytrain_plus": version("raytrain-plus"),
        **(_cuda(device) if device.type == "cuda" else {"device": platform.machine()}),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "initial model": built,
        "probe gradient": probed,
    }


def _probed(loop: TrainingLoop, batch: Batch) -> str:
    hashed = hashlib.sha256()
    for tensor in loop.probe(dict(batch)):
        hashed.update(tensor_bytes(tensor))
    return hashed.hexdigest()


def _cuda(device: torch.device) -> Fingerprint:
    properties = torch.cuda.get_device_properties(device)
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return {
        "device": properties.name,
        "multiprocessors": str(properties.multi_processor_count),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "nccl": nccl,
        "tf32": f"{torch.backends.cuda.matmul.allow_tf32} {torch.backends.cudnn.allow_tf32}",
    }
