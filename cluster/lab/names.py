"""What the parts of a lab are called, and at which addresses its hosts are: pure.

A lab is a number. It is the third octet of the lab's network and stands in the name of everything
that the lab makes, so that labs side by side can be told apart.
"""

import re
from collections.abc import Iterable, Sequence

SWITCH = "switch"

_PREFIX = "rtp-lab"
_NETWORK = "10.77"
_NUMBERS = range(1, 255)
_FIRST_HOST = 10
_MOST_HOSTS = 200


class LabError(RuntimeError):
    """The lab cannot do what it was asked for."""


def namespace(number: int, host: str) -> str:
    """Return what the network namespace of a host, or of the switch, is called."""
    return f"{_PREFIX}-{number}-{host}"


def free_number(namespaces: Iterable[str]) -> int:
    """Return the lowest number that no lab has.

    Args:
        namespaces: the names of all network namespaces of this machine.

    Raises:
        LabError: all are taken.
    """
    found = (re.match(rf"{_PREFIX}-(\d+)-", name) for name in namespaces)
    taken = {int(match[1]) for match in found if match}
    for number in _NUMBERS:
        if number not in taken:
            return number
    raise LabError(
        f"all {len(_NUMBERS)} networks of {_NETWORK}.0.0/16 are taken by labs: take some down; "
        f"`ip netns list` shows them as {_PREFIX}-NUMBER-HOST"
    )


def addresses(number: int, hosts: Sequence[str]) -> dict[str, str]:
    """Return the address of each host, in the order in which they are named.

    Raises:
        LabError: a name cannot be a host's, or stands there twice.
    """
    if not 0 < len(hosts) <= _MOST_HOSTS:
        raise LabError(f"a lab has 1 to {_MOST_HOSTS} hosts, not {len(hosts)}")
    for host in hosts:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,7}", host) or host in (SWITCH, "localhost"):
            raise LabError(
                f"{host!r} cannot be a host's name: up to 8 small letters and digits, a letter "
                f"first, and not {SWITCH!r}"
            )
        if hosts.count(host) > 1:
            raise LabError(f"host {host!r} is named twice")
    return {host: f"{_NETWORK}.{number}.{place}" for place, host in enumerate(hosts, _FIRST_HOST)}


def hosts_file(known: dict[str, str]) -> str:
    """Return the text of /etc/hosts, by which the hosts find each other."""
    lines = ["127.0.0.1 localhost", *(f"{address} {host}" for host, address in known.items())]
    return "".join(line + "\n" for line in lines)
