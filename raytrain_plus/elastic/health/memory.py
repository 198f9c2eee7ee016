"""A node's memory, as Ray's memory monitor sees it: above a threshold it ends processes."""

import os
from collections.abc import Callable

from ray._private import utils

_THRESHOLD = "RAY_memory_usage_threshold"
_DEFAULT = 0.95  # of Ray
_GIB = 2**30


def trouble(
    used: Callable[[], float] = utils.get_used_memory,
    total: Callable[[], float] = utils.get_system_memory,
) -> str:
    """Say that this node's memory is above Ray's threshold; nothing if it is not.

    Args:
        used: bytes that are in use on this node, or in its container.
        total: bytes that there are.
    """
    try:
        share, threshold = used() / total(), float(os.environ.get(_THRESHOLD, _DEFAULT))
    except (OSError, ValueError, ZeroDivisionError):
        return ""
    if share < threshold:
        return ""
    return (
        f"; this node uses {used() / _GIB:.1f} of its {total() / _GIB:.1f} GiB of memory, which is "
        f"above {threshold:.0%} ({_THRESHOLD}), so that Ray's memory monitor ends what is started "
        "here: free memory, use a larger node, or raise the threshold"
    )
