"""Hosts that are reached by ssh, as real machines are: keys, a server, a login shell."""

# ruff: noqa: S603 - the commands are our own
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cluster.lab.names import LabError

_SERVER = "/usr/sbin/sshd"  # where Debian has it; it wants to be called by its whole path
_NEEDED = ("ssh", "ssh-keygen", "rsync")
_CLIENT, _HOST = "client_key", "host_key"
_HOME = Path("/root")
_OWN = _HOME / ".sshd"  # the server's files on each host


def why_not() -> str:
    """Say why this machine cannot have hosts that are reached by ssh; nothing if it can."""
    missing = [program for program in _NEEDED if shutil.which(program) is None]
    missing += [] if Path(_SERVER).exists() else ["sshd"]
    return f"ssh between hosts needs {', '.join(missing)} (openssh-server, rsync)" * bool(missing)


def make_keys() -> dict[str, str]:
    """Return the files of the one key that all hosts let in, and of the one that they show.

    Raises:
        LabError: they cannot be made.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in (_CLIENT, _HOST):
            line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", name]
            done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LabError(f"no key for ssh: {done.stderr.strip()}")
        return {path.name: path.read_text() for path in Path(folder).iterdir()}


def prepare(disk: Path, keys: Mapping[str, str], address: str, tree: Path) -> None:
    """Write what a host needs before its server is started.

    Args:
        disk: the host's.
        keys: the lab's.
        address: at which the server listens.
        tree: the source tree that a login shell finds.
    """
    for folder, files in {
        _HOME / ".ssh": {
            "authorized_keys": keys[f"{_CLIENT}.pub"],
            "id_ed25519": keys[_CLIENT],
            "config": "StrictHostKeyChecking accept-new\n",
        },
        _OWN: {"key": keys[_HOST], "config": _configuration(address)},
        _HOME: {".bashrc": _login(tree)},
    }.items():
        inside = disk / folder.relative_to("/")
        inside.mkdir(exist_ok=True)
        inside.chmod(0o700)
        for name, text in files.items():
            (inside / name).touch(0o600)
            (inside / name).write_text(text)


def server() -> list[str]:
    """Return the command that starts a host's server, and ends when it listens."""
    line = [_SERVER, "-f", str(_OWN / "config"), "-E", str(_OWN / "log")]
    return ["sh", "-c", f"mkdir -p /run/sshd && exec {shlex.join(line)}"]


def _login(tree: Path) -> str:
    path = f"export PATH={shlex.quote(sys.prefix)}/bin:$PATH\n"
    return f"{path}export PYTHONPATH={shlex.quote(str(tree))}\n"


def _configuration(address: str) -> str:
    settings = {
        "ListenAddress": address,
        "HostKey": _OWN / "key",
        "PidFile": "none",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UsePAM": "no",
        "MaxStartups": "100",
        "MaxSessions": "100",
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())
