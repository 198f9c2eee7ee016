"""Why a group changed, in one word of a few. Pure.

The journal gives causes as sentences that name workers; a label of a metric must not, since each
of its values is kept as a series of its own.
"""

import re

# What forces a pause stands before what happens on the occasion.
_CLASSES = {
    "corruption": r"\w+ expelled",
    "coordinator": r"the coordinator came back",
    "lost": r"\w+ (lost|hung|failed)|\d+ taken away",
    "drained": r"\w+ drained",
    "scaled": r"scaled to \d+|(add|remove) \d+",
    "rebalanced": r"rebalanced",
    "joined": r"\w+ joined",
    "start": r"start",
}
CAUSES = (*_CLASSES, "other")


def class_of(cause: str) -> str:
    """Return the class of a cause: one of `CAUSES`.

    Args:
        cause: as a `generation` line of the journal has it, such as "w1 lost, w3 joined".
    """
    parts = cause.split(", ")
    for name, pattern in _CLASSES.items():
        if any(re.fullmatch(pattern, part) for part in parts):
            return name
    return "other"
