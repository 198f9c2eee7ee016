"""The command lines that a lab consists of: pure.

A host is a set of namespaces (network, mounts, process ids, host name, shared memory) around a
process 1, which runs nothing. Its cable is a pair of interfaces: `eth0` is the host's end, the
other hangs on a bridge in a namespace of its own, the switch. Nothing is added to the network of
the machine itself.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.lab.names import SWITCH, namespace

Command = list[str]

_BRIDGE = "bridge"
# What may be sent at once (some milliseconds' worth), and how long the rest may wait before it is
# dropped: as long as in a switch with deep buffers, so that TCP finds the rate without many losses.
_BUCKET = ("burst", "64kb", "latency", "100ms")
# What each host has for itself; the other folders are the machine's.
_DISKS = (Path("/root"), Path("/tmp"))  # noqa: S108 - its name, nothing is put there
_MEMORY = (Path("/dev/shm"), Path("/run"))  # noqa: S108
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def claim(number: int) -> Command:
    """Return the command that makes the switch's namespace, and fails if there is one."""
    return ["ip", "netns", "add", namespace(number, SWITCH)]


def start_switch(number: int) -> list[Command]:
    """Return the commands that make the bridge."""
    link = ["ip", "-n", namespace(number, SWITCH), "link"]
    return [
        [*link, "add", _BRIDGE, "type", "bridge", "forward_delay", "0", "stp_state", "0"],
        [*link, "set", _BRIDGE, "up"],
    ]


def plug_in(number: int, host: str, address: str) -> list[Command]:
    """Return the commands that give a host a network and a cable to the switch."""
    name, switch = namespace(number, host), namespace(number, SWITCH)
    there = ["ip", "-n", name]
    # A host that comes back has the card that it had, so that its neighbours find it at once.
    card = "02:00:" + ":".join(f"{int(octet):02x}" for octet in address.split("."))
    cable = ["type", "veth", "peer", "name", "eth0", "address", card, "netns", name]
    return [
        ["ip", "netns", "add", name],
        ["ip", "-n", switch, "link", "add", "name", host, *cable],
        ["ip", "-n", switch, "link", "set", "dev", host, "master", _BRIDGE, "up"],
        [*there, "link", "set", "lo", "up"],
        [*there, "address", "add", f"{address}/24", "dev", "eth0"],
        [*there, "link", "set", "eth0", "up"],
    ]


def unplug(number: int, host: str) -> list[Command]:
    """Return the commands that remove a host's cable and network.

    The cable first: with the network alone it would go too, but only some time later.
    """
    ends = ["ip", "-n", namespace(number, SWITCH), "link", "delete", "dev", host]
    return [ends, ["ip", "netns", "delete", namespace(number, host)]]


def remove_switch(number: int) -> Command:
    """Return the command that gives a lab's number back."""
    return ["ip", "netns", "delete", namespace(number, SWITCH)]


def cable(number: int, host: str, *, joined: bool) -> Command:
    """Return the command that pulls a host's cable or plugs it in, without a notice."""
    state = "up" if joined else "down"
    return ["ip", "-n", namespace(number, SWITCH), "link", "set", "dev", host, state]


def throttle(number: int, host: str, mbit: float | None) -> list[Command]:
    """Return the commands that let a host's cable carry so much in each direction, or all it can.

    A token bucket at either end; what a sender is ahead waits there, and is not lost.

    Args:
        number: of the lab.
        host: its name.
        mbit: millions of bits per second; None removes the limit.
    """
    limit = ["noqueue"] if mbit is None else ["tbf", "rate", f"{mbit:g}mbit", *_BUCKET]
    return [
        ["tc", "-n", namespace(number, where), "qdisc", "replace", "dev", end, "root", *limit]
        for where, end in ((SWITCH, host), (host, "eth0"))
    ]


def tap(host: str) -> str:
    """Return what the switch's end of a long cable is called."""
    return f"{host}-tap"


def lengthen(number: int, host: str, milliseconds: float, python: str) -> Command:
    """Return the command that carries frames over a long cable; see `delay.py`."""
    network = f"--net=/run/netns/{namespace(number, SWITCH)}"
    program = [python, "-m", "cluster.lab.delay", host, tap(host), f"{milliseconds:g}"]
    return ["nsenter", network, *program]


def plug_long(number: int, host: str, *, long: bool) -> list[Command]:
    """Return the commands that put a host's long cable in the place of its own, or take it out."""
    link = ["ip", "-n", namespace(number, SWITCH), "link", "set", "dev"]
    if not long:  # the other has gone with its process
        return [[*link, host, "master", _BRIDGE]]
    return [[*link, host, "nomaster"], [*link, tap(host), "master", _BRIDGE, "up"]]


def power_on(number: int, host: str, script: str) -> Command:
    """Return the command that starts a host's process 1, which runs a script."""
    own = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--propagation", "private"]
    network = f"--net=/run/netns/{namespace(number, host)}"
    return ["nsenter", network, "unshare", *own, "sh", "-c", script]


def boot_script(host: str, folder: Path, visible: Sequence[Path]) -> str:
    """Return what a host's process 1 does: make folders private, say its number, and sleep.

    The number is the one outside of the host; when it comes, all is there. Children that their
    parents leave behind are reaped, as SIGCHLD is ignored.

    Args:
        host: its name.
        folder: where its disk and its hosts file are.
        visible: what stays visible at the same path, though it lies in a private folder.
    """
    disk = folder / "disk"
    lines = [
        "set -e",
        "read -r number rest </proc/self/stat",
        "mount -t proc proc /proc",
        f"echo {host} >/proc/sys/kernel/hostname",
        f"mount --bind {_quoted(folder / 'hosts')} /etc/hosts",
        "umount --lazy --recursive /run/netns",
    ]
    for private in in_mounting_order(folder):
        own = disk / private.relative_to("/")
        if private in _MEMORY:
            lines.append(f"mount -t tmpfs -o mode=1777 tmpfs {_quoted(own)}")
        for path in visible:
            if path.is_relative_to(private):
                inside = _quoted(disk / path.relative_to("/"))
                lines += [f"mkdir -p {inside}", f"mount --rbind {_quoted(path)} {inside}"]
        lines.append(f"mount --rbind {_quoted(own)} {private}")
    sleep = "exec env --ignore-signal=CHLD sleep infinity >/dev/null 2>&1"
    return "\n".join([*lines, "cd /", "echo $number", sleep])


def in_mounting_order(folder: Path) -> list[Path]:
    """Return the private folders; the one that hides a lab's own folder comes last."""
    return sorted((*_DISKS, *_MEMORY), key=folder.is_relative_to)


def disk_folders(folder: Path) -> list[Path]:
    """Return the folders that a host's disk must have before it is started."""
    return [folder / "disk" / private.relative_to("/") for private in (*_DISKS, *_MEMORY)]


def enter(pid: int, command: Sequence[str], environment: Mapping[str, str], path: str) -> Command:
    """Return the command that runs another inside a host, with an environment of its own.

    Args:
        pid: of the host's process 1.
        command: what to run.
        environment: variables in addition to the usual ones.
        path: where its programs are looked for, before the system's folders.
    """
    usual = {
        "HOME": "/root",
        "USER": "root",
        "LANG": "C.UTF-8",
        "PATH": f"{path}:{_SYSTEM}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    variables = [f"{name}={value}" for name, value in {**usual, **environment}.items()]
    spaces = ["--net", "--mount", "--pid", "--uts", "--ipc"]
    return ["nsenter", f"--target={pid}", *spaces, "env", "-i", *variables, *command]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
