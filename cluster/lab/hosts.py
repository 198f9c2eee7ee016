"""A lab: its hosts are started, entered, cut off, and removed."""

# ruff: noqa: S603, S607 - the commands are our own
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cluster.lab import commands, ssh
from cluster.lab.commands import Command
from cluster.lab.names import SWITCH, LabError, addresses, free_number, hosts_file, namespace

_STATE = "lab.json"
_NEEDED = ("ip", "tc", "unshare", "nsenter", "mount", "sh")
_TREE = Path(__file__).parents[2]


def why_not() -> str:
    """Say why this machine cannot have a lab; nothing if it can."""
    if os.geteuid() != 0:
        return "a lab of several hosts needs root"
    if missing := [program for program in _NEEDED if shutil.which(program) is None]:
        return f"a lab of several hosts needs {', '.join(missing)} (iproute2, util-linux, mount)"
    spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork"]
    tried = subprocess.run(
        ["unshare", *spaces, "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces are not permitted here: {tried.stderr.strip()}" if tried.returncode else ""


class Lab:
    """Hosts on a network of their own. All that is known of them lies in one folder.

    Each host has /tmp, /root, /dev/shm and /run for itself. The virtual environment, this source
    tree and what the caller names are visible at the same path on all.

    Args:
        folder: of a lab that was made by `up`.

    Attributes:
        addresses: of all hosts, on or off.

    Raises:
        LabError: there is no lab.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        try:
            state = json.loads((self.folder / _STATE).read_text())
        except FileNotFoundError:
            raise LabError(f"there is no lab in {self.folder}: make one with `up`") from None
        self.number: int = state["number"]
        self.addresses: dict[str, str] = state["addresses"]
        self._visible = [Path(path) for path in state["visible"]]
        self._keys: dict[str, str] = state["keys"]

    @classmethod
    def up(
        cls,
        folder: Path,
        hosts: Sequence[str],
        visible: Sequence[Path] = (),
        *,
        with_ssh: bool = False,
    ) -> "Lab":
        """Make a lab and start its hosts; if that fails, nothing is left of it.

        Args:
            folder: for the lab's files; new or empty.
            hosts: their names.
            visible: folders that all hosts see, wherever they lie.
            with_ssh: each host has a server, and root on it a key that all let in.

        Raises:
            LabError: it cannot be made.
        """
        if folder.exists() and any(folder.iterdir()):
            raise LabError(f"{folder} is not empty: take down what is there, or choose another")
        if with_ssh and (reason := ssh.why_not()):
            raise LabError(reason)
        folder.mkdir(parents=True, exist_ok=True)
        addresses(1, hosts)  # raises where a name is wrong, before anything is made
        shared = {sys.prefix, sys.base_prefix, str(_TREE), *(str(p.resolve()) for p in visible)}
        keys = ssh.make_keys() if with_ssh else {}
        number = _claim_number()
        state = {
            "number": number,
            "addresses": addresses(number, hosts),
            "visible": sorted(shared),
            "keys": keys,
        }
        (folder / _STATE).touch(0o600)
        (folder / _STATE).write_text(json.dumps(state))
        lab = cls(folder)
        try:
            _run_all(commands.start_switch(number))
            for host in hosts:
                lab.boot(host)
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    @contextlib.contextmanager
    def of(
        cls,
        folder: Path,
        hosts: Sequence[str],
        visible: Sequence[Path] = (),
        *,
        with_ssh: bool = False,
    ) -> Iterator["Lab"]:
        """Have a lab for as long as it is needed; see `up`."""
        lab = cls.up(folder, hosts, visible, with_ssh=with_ssh)
        try:
            yield lab
        finally:
            lab.down()

    def boot(self, host: str) -> None:
        """Start a host that is off, with an empty disk.

        Raises:
            LabError: it is on, or does not start.
        """
        if self._pid(host) is not None:
            raise LabError(f"host {host!r} is on already")
        self._remove(host)
        own = self.folder / host
        for disk in commands.disk_folders(own):
            disk.mkdir(parents=True)
        (own / "disk" / "tmp").chmod(0o1777)
        (own / "hosts").write_text(hosts_file(self.addresses))
        if self._keys:
            ssh.prepare(own / "disk", self._keys, self.addresses[host], _TREE)
        _run_all(commands.plug_in(self.number, host, self.addresses[host]))
        script = commands.boot_script(host, own, self._visible)
        with (own / "console").open("w") as console:
            process = subprocess.Popen(
                commands.power_on(self.number, host, script),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=console,
                text=True,
                start_new_session=True,
            )
        assert process.stdout is not None
        with process.stdout as told:
            line = told.readline().strip()
        if not line:
            raise LabError(f"host {host!r} did not start: {(own / 'console').read_text().strip()}")
        (own / "pid").write_text(line)
        if self._keys:
            _run_all([self.command(host, ssh.server())])

    def command(
        self, host: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Command:
        """Return the command line that runs a command on a host.

        It finds the programs of this virtual environment, and modules of this source tree.

        Raises:
            LabError: the host is off.
        """
        pid = self._pid(host)
        if pid is None:
            raise LabError(f"host {host!r} is off: boot it first")
        variables = {"PYTHONPATH": str(_TREE), **(environment or {})}
        return commands.enter(pid, command, variables, f"{sys.prefix}/bin")

    def kill(self, host: str) -> None:
        """Switch a host's power off: all its processes are gone at once.

        Returns when they are. What is on its disk stays until it is booted again.
        """
        _kill(lambda: self._pid(host))

    def cut(self, host: str) -> None:
        """Pull a host's cable: from now on nothing is heard of it."""
        self._known(host)
        _run_all([commands.cable(self.number, host, joined=False)])

    def join(self, host: str) -> None:
        """Plug a host's cable in again."""
        self._known(host)
        _run_all([commands.cable(self.number, host, joined=True)])

    def slow(self, host: str, mbit: float | None = None) -> None:
        """Let a host's cable carry so many millions of bits a second, in each direction.

        None: as many as it can. A host that is booted has a new cable.
        """
        self._known(host)
        if mbit is not None and not mbit > 0:
            raise LabError(f"a cable of {mbit:g} Mbit/s carries nothing: cut it, or give more")
        _run_all(commands.throttle(self.number, host, mbit))

    def delay(self, host: str, milliseconds: float | None = None) -> None:
        """Let whatever a host sends, and is sent, take so much longer: a round trip twice that.

        None: its own short cable again. A host that is booted has one, too. A process carries the
        frames (`delay.py`), which costs some CPU, and some throughput even at 0 ms.
        """
        self._known(host)
        if milliseconds is not None and not milliseconds >= 0:
            raise LabError(f"a delay of {milliseconds:g} ms cannot be: give 0 or more")
        self._shorten(host)
        if milliseconds is None:
            _run_all(commands.plug_long(self.number, host, long=False))
            return
        line = commands.lengthen(self.number, host, milliseconds, sys.executable)
        own = self.folder / host
        with (own / "cable").open("w") as console:
            process = subprocess.Popen(
                line,
                env={**os.environ, "PYTHONPATH": str(_TREE)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=console,
                text=True,
                start_new_session=True,
            )
        (own / "delay").write_text(str(process.pid))
        assert process.stdout is not None
        with process.stdout as told:
            if told.readline().strip() != "ready":
                why = (own / "cable").read_text().strip()
                raise LabError(f"the cable of {host!r} cannot be made longer: {why}")
        _run_all(commands.plug_long(self.number, host, long=True))

    def down(self) -> None:
        """Remove all that the lab has made: processes, networks, files. Also half a lab."""
        for host in self.addresses:
            self.kill(host)
            self._remove(host)
        subprocess.run(commands.remove_switch(self.number), capture_output=True, check=False)
        (self.folder / _STATE).unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # unless something else was put there

    def _shorten(self, host: str) -> None:
        """End the process that carries a host's frames, if there is one."""
        _kill(lambda: _process(self.folder / host / "delay", namespace(self.number, SWITCH)))

    def _remove(self, host: str) -> None:
        self._shorten(host)
        for line in commands.unplug(self.number, host):
            subprocess.run(line, capture_output=True, check=False)
        if (self.folder / host).exists():
            shutil.rmtree(self.folder / host)

    def _known(self, host: str) -> None:
        if host not in self.addresses:
            raise LabError(f"there is no host {host!r}: there are {', '.join(self.addresses)}")

    def _pid(self, host: str) -> int | None:
        """Return the number of a host's process 1; None if it is off."""
        self._known(host)
        return _process(self.folder / host / "pid", namespace(self.number, host))


def _process(written: Path, network: str) -> int | None:
    """Return the number of a process that a file holds; None if it has ended.

    A number alone says little, as the system gives it to another process soon: it must be in the
    network of that name.
    """
    with contextlib.suppress(FileNotFoundError):
        pid = int(written.read_text())
        there = Path("/run/netns") / network
        if there.stat().st_ino == Path(f"/proc/{pid}/ns/net").stat().st_ino:
            return pid
    return None


def _kill(find: Callable[[], int | None]) -> None:
    """Kill a process, and wait until it has gone."""
    pid = find()
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            # Between the two looks, the number could have gone to another process.
            if find() == pid:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                select.select([descriptor], [], [])
        finally:
            os.close(descriptor)


def _claim_number() -> int:
    """Take a number that no lab has. The process that makes the switch's namespace owns it."""
    while True:
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
        names = {line.split()[0] for line in listed.stdout.splitlines() if line}
        number = free_number(names)
        made = subprocess.run(commands.claim(number), capture_output=True, text=True, check=False)
        if made.returncode == 0:
            return number
        if "File exists" not in made.stderr:
            raise LabError(f"could not make a network namespace: {made.stderr.strip()}")


def _run_all(lines: Sequence[Command]) -> None:
    for line in lines:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"`{' '.join(line)}` failed: {done.stderr.strip()}")
