"""The lab as a command: `python -m cluster.lab ACT FOLDER ...`.

Acts: up, exec, kill, boot, cut, join, slow, delay, down.
"""

# ruff: noqa: T201, S603 - a command, whose caller is root and says what to run
import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.lab.hosts import Lab, why_not
from cluster.lab.names import LabError

_ACTS = {
    "kill": "switch a host's power off",
    "boot": "start a host that is off, with an empty disk",
    "cut": "pull a host's cable",
    "join": "plug a host's cable in again",
}
_CABLES = {
    "slow": ("mbit", "limit what a host's cable carries, in Mbit/s; without a number: no more"),
    "delay": ("ms", "let a host's frames take so many ms longer each way; without: no more"),
}


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m cluster.lab", description=__doc__)
    acts = parser.add_subparsers(dest="act", required=True)
    up = acts.add_parser("up", help="make a lab and start its hosts")
    up.add_argument("folder", type=Path, help="for the lab's files; new or empty")
    up.add_argument("hosts", nargs="+", metavar="HOST")
    up.add_argument("--visible", type=Path, action="append", default=[], metavar="PATH")
    up.add_argument("--ssh", action="store_true", help="let the hosts reach each other by ssh")
    execute = acts.add_parser("exec", help="run a command on a host")
    execute.add_argument("folder", type=Path)
    execute.add_argument("host")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    for act, does in _ACTS.items():
        one = acts.add_parser(act, help=does)
        one.add_argument("folder", type=Path)
        one.add_argument("host")
    for act, (unit, does) in _CABLES.items():
        one = acts.add_parser(act, help=does)
        one.add_argument("folder", type=Path)
        one.add_argument("host")
        one.add_argument("amount", type=float, nargs="?", metavar=unit.upper())
    acts.add_parser("down", help="remove the lab").add_argument("folder", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run as a command; returns its exit status: 2 where it was asked for what cannot be."""
    chosen = options(arguments)
    try:
        if reason := why_not():
            raise LabError(reason)
        if chosen.act == "up":
            lab = Lab.up(chosen.folder, chosen.hosts, chosen.visible, with_ssh=chosen.ssh)
            for host, address in lab.addresses.items():
                print(host, address)
            return 0
        lab = Lab(chosen.folder)
        if chosen.act == "exec":
            line = lab.command(chosen.host, chosen.command)
            return subprocess.run(line, check=False).returncode
        if chosen.act == "down":
            lab.down()
        elif chosen.act in _CABLES:
            getattr(lab, chosen.act)(chosen.host, chosen.amount)
        else:
            getattr(lab, chosen.act)(chosen.host)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
