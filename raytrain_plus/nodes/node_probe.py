"""The actor that the doctor starts on each node to examine it."""

import hashlib
import os
import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("ray", "torch", "numpy", "raytrain-plus")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at only


class NodeProbe:
    """Examines the node that it is on."""

    def clock(self) -> float:
        """Return the node's time, in seconds since 1970."""
        return time.time()

    def look(self) -> dict[str, Any]:
        """Return facts of the node, by the names of `NodeFacts`."""
        import ray  # noqa: PLC0415 - on the node
        import torch  # noqa: PLC0415

        from raytrain_plus.nodes import local_node  # noqa: PLC0415

        context = ray.get_runtime_context()
        disk = shutil.disk_usage(context.get_temp_dir())
        shared = shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.exists() else 0
        return {
            "versions": {
                "python": platform.python_version(),
                **{library: _version(library) for library in _LIBRARIES},
            },
            "hardware": {
                "processor": platform.machine(),
                "instruction set": torch.backends.cpu.get_cpu_capability(),
            },
            "computed": computed(),
            "cores": len(os.sched_getaffinity(0)),
            "disk": (disk.free, disk.total),
            "shared_memory": shared,
            "token": os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
            "agent": local_node.has_agent(context.get_node_id()),
        }


def computed() -> str:
    """Compute something small with the kernels that training uses; returns a hash of its bits."""
    import torch  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = torch.Generator().manual_seed(17)
        image = torch.randn(4, 8, 24, 24, generator=made)
        kernel = torch.randn(16, 8, 3, 3, generator=made)
        matrix = torch.randn(256, 128, generator=made)
        conv = functional.conv2d(image, kernel)
        outputs = [conv, matrix @ matrix.T, functional.layer_norm(matrix, (128,)), matrix.exp()]
    finally:
        torch.set_num_threads(before)
    hashed = hashlib.sha256()
    for output in outputs:
        hashed.update(output.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
