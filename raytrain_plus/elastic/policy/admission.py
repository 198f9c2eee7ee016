"""Whether a newcomer computes the same bits as the group. Pure."""

from raytrain_plus.elastic.protocol.messages import Fingerprint

_COMPUTED = {"initial model", "probe gradient"}
_MACHINE = (
    "; all versions are equal, so look at the machine: another kind of CPU, a cap on its "
    "instructions (ONEDNN_MAX_CPU_ISA, MKL_CBWR), or a broken core"
)


def difference(group: Fingerprint, newcomer: Fingerprint, compared: str = "the group's is") -> str:
    """Say in what a newcomer's fingerprint differs from the group's; empty if in nothing."""
    differing = {
        key: f"{key} is {_short(newcomer.get(key, 'unknown'))}, {compared} {_short(value)}"
        for key, value in group.items()
        if newcomer.get(key) != value
    }
    hint = _MACHINE if differing and differing.keys() <= _COMPUTED else ""
    return "; ".join(differing.values()) + hint


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value
