"""Whether a newcomer computes the same bits as the group. Pure."""

from raytrain_plus.elastic.protocol.messages import Fingerprint


def difference(group: Fingerprint, newcomer: Fingerprint, compared: str = "the group's is") -> str:
    """Say in what a newcomer's fingerprint differs from the group's; empty if in nothing."""
    differing = [
        f"{key} is {_short(newcomer.get(key, 'unknown'))}, {compared} {_short(value)}"
        for key, value in group.items()
        if newcomer.get(key) != value
    ]
    return "; ".join(differing)


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value
