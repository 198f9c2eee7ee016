"""Which Ray clusters this machine vouches for: only they get the token without being named.

A token opens a whole cluster. It is shown to an address that the user gives, and to that of a
cluster to which a Ray of this user on this machine belongs. It is never shown to an address that is
only in a file of a run, since such a file may come from anyone.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ray._common.utils import get_ray_address_file

_PROGRAM, _FLAG = "raylet", "--gcs-address="
_MOST = 4096  # bytes of the file that names an address


def vouched_addresses(proc: Path = Path("/proc")) -> list[str]:
    """Return the addresses of clusters that a Ray of this user on this machine belongs to.

    Args:
        proc: where the processes are seen.
    """
    started = last_started()
    found = [] if started is None else [started]
    return list(dict.fromkeys([*found, *addresses_of_raylets(proc)]))


def last_started(file: Path | None = None) -> str | None:
    """Return the address of the Ray that `ray start` has started last on this machine, if any.

    Args:
        file: in which Ray notes it. Default: where Ray does so, in a folder that many may share; a
            file that another user could have written does not count.
    """
    path = file or Path(get_ray_address_file(None))
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(opened, "rb") as reading:
        told = os.fstat(opened)
        ours = told.st_uid in (os.getuid(), 0) and not told.st_mode & stat.S_IWOTH
        if not (ours and stat.S_ISREG(told.st_mode)):
            return None
        return reading.read(_MOST).decode(errors="replace").strip() or None


def addresses_of_raylets(proc: Path = Path("/proc")) -> Iterator[str]:
    """Yield the addresses of clusters to which live Ray daemons of this user on this host belong.

    Args:
        proc: where the processes are seen.
    """
    try:
        entries = [entry for entry in proc.iterdir() if entry.name.isdigit()]
    except OSError:  # not Linux
        return
    for entry in entries:
        try:
            if entry.stat().st_uid not in (os.getuid(), 0):
                continue
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended
        if Path(words[0]).name == _PROGRAM:
            yield from (word.removeprefix(_FLAG) for word in words if word.startswith(_FLAG))
