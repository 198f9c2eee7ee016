"""The lab's hosts: what is private, what is shared, and what of a host can be disabled."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.lab import commands, ssh
from cluster.lab.__main__ import main
from cluster.lab.hosts import Lab, why_not
from cluster.lab.names import LabError, namespace
from tests.expected import require

SECONDS = 20.0  # for operations that take milliseconds on an idle machine

# Prints the lines that it receives: the other end of a cable.
LISTENER = """
import socket, sys
server = socket.create_server((sys.argv[1], 4000))
print("listening", flush=True)
connection, _ = server.accept()
for line in connection.makefile():
    print(line, end="", flush=True)
print("hung up", flush=True)
"""
# Sends the lines that it reads.
SENDER = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 4000))
for line in sys.stdin:
    connection.sendall(line.encode())
"""
# Tries to connect; without an answer, not even a refusal, the other end is unreachable.
CALLER = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 4000), timeout=0.5)
    print("connected")
except TimeoutError:
    print("silence")
"""


@pytest.fixture(scope="module", autouse=True)
def possible():
    require("lab", why_not())


@pytest.fixture
def lab(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    with Lab.of(tmp_path / "lab", ["left", "right"], visible=[shared]) as lab:
        yield lab
    assert not (tmp_path / "lab").exists()
    assert traces(lab.number) == []


def traces(number=None):
    """Return the networks and mounts of a lab, or of all labs."""
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    mounts = Path("/proc/self/mounts").read_text()
    mark = "rtp-lab-" if number is None else namespace(number, "")
    return [line for line in (names.stdout + mounts).splitlines() if mark in line]


def on(lab, host, *command):
    """Return the output of a command on a host."""
    done = subprocess.run(
        lab.command(host, command), capture_output=True, text=True, check=True, timeout=SECONDS
    )
    return done.stdout


def start(lab, host, code, *arguments):
    """Start a Python program on a host, with pipes to it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    line = lab.command(host, [sys.executable, "-c", code, *arguments])
    return subprocess.Popen(line, text=True, **pipes)


@pytest.fixture
def talk(lab):
    """A program on `right`, and one on `left` that sends to it."""
    address = lab.addresses["right"]
    with start(lab, "right", LISTENER, address) as listener:
        assert listener.stdout.readline() == "listening\n"
        with start(lab, "left", SENDER, address) as sender:
            say(sender, "hello")
            assert listener.stdout.readline() == "hello\n"
            yield sender, listener
            lab.kill("left")
            lab.kill("right")


def say(sender, word):
    sender.stdin.write(word + "\n")
    sender.stdin.flush()


def test_a_host_has_its_own_name_folders_and_processes(lab):
    assert on(lab, "left", "hostname") == "left\n"
    assert on(lab, "left", "cat", "/proc/1/comm") == "sleep\n"
    assert str(os.getpid()) not in on(lab, "left", "ls", "/proc").split()
    for private in ("/tmp", "/root", "/dev/shm", "/run"):
        on(lab, "left", "touch", f"{private}/mark-of-the-lab")
        assert "mark-of-the-lab" in on(lab, "left", "ls", private)
        assert "mark-of-the-lab" not in on(lab, "right", "ls", private)
        assert not Path(private, "mark-of-the-lab").exists()


def test_hosts_share_the_given_folders(lab):
    shared = lab.folder.parent / "shared"
    on(lab, "left", "touch", f"{shared}/file")
    assert on(lab, "right", "ls", str(shared)) == "file\n"
    assert (shared / "file").exists()
    code = "import cluster.lab, torch, sys; print(sys.prefix)"
    assert on(lab, "right", "python", "-c", code).strip() == sys.prefix


def test_a_host_without_power_closes_its_connections(lab, talk):
    _, listener = talk
    lab.kill("left")
    assert listener.stdout.readline() == "hung up\n"
    with pytest.raises(LabError, match="host 'left' is off"):
        on(lab, "left", "true")
    # Its disk is empty when it comes back, and its processes are gone.
    lab.boot("left")
    assert on(lab, "left", "ls", "/tmp").split() == on(lab, "right", "ls", "/tmp").split()
    assert len([name for name in on(lab, "left", "ls", "/proc").split() if name.isdigit()]) == 2


def test_a_cut_cable_is_silent(lab, talk):
    sender, listener = talk
    call = ["python", "-c", CALLER, lab.addresses["right"]]
    assert on(lab, "left", *call) == "connected\n"
    lab.cut("left")
    say(sender, "hello")
    assert on(lab, "left", *call) == "silence\n"
    # The existing connection does not end: no packet says that the other end is gone.
    lab.kill("left")
    assert select.select([listener.stdout], [], [], 0) == ([], [], [])


def test_a_reconnected_cable_delivers_what_was_sent(lab, talk):
    sender, listener = talk
    lab.cut("left")
    say(sender, "hello")
    lab.join("left")
    assert listener.stdout.readline() == "hello\n"


def test_two_labs_cannot_reach_each_other(lab, tmp_path):
    with Lab.of(tmp_path / "other", ["left"]) as other:
        assert other.number != lab.number
        assert other.addresses["left"] != lab.addresses["left"]
        on(other, "left", "true")
    on(lab, "left", "true")
    assert traces(other.number) == []


def test_hosts_accept_each_other_by_ssh(tmp_path):
    require("ssh", ssh.why_not())
    with Lab.of(tmp_path / "lab", ["one", "two"], with_ssh=True) as lab:
        asked = "hostname; command -v ray; pwd"
        assert on(lab, "one", "ssh", "two", asked) == f"two\n{sys.prefix}/bin/ray\n/root\n"
        on(lab, "one", "sh", "-c", "echo mark >here && rsync here two:there")
        assert on(lab, "two", "cat", "/root/there") == "mark\n"
        # When it comes back, it is the same host: known, and found at once.
        lab.kill("two")
        lab.boot("two")
        assert on(lab, "one", "ssh", "two", "hostname") == "two\n"
        # The control: without the key there is no access.
        on(lab, "one", "mv", "/root/.ssh/id_ed25519", "/root/.ssh/elsewhere")
        with pytest.raises(subprocess.CalledProcessError):
            on(lab, "one", "ssh", "-o", "BatchMode=yes", "two", "true")
    assert traces(lab.number) == []


def test_a_host_has_no_server_unless_it_is_wanted(lab):
    with pytest.raises(subprocess.CalledProcessError):
        on(lab, "left", "ssh", "-o", "BatchMode=yes", lab.addresses["right"], "true")


def test_a_lab_that_did_not_start_leaves_nothing_behind(tmp_path, monkeypatch):
    scripts = commands.boot_script
    broken = {"second": "echo no luck >&2; exit 1"}
    monkeypatch.setattr(
        commands, "boot_script", lambda host, *rest: broken.get(host) or scripts(host, *rest)
    )
    before = traces()
    with pytest.raises(LabError, match="host 'second' did not start: no luck"):
        Lab.up(tmp_path / "lab", ["first", "second"])
    assert not (tmp_path / "lab").exists()
    assert traces() == before


def test_the_command(tmp_path, capsys):
    folder = str(tmp_path / "lab")
    try:
        assert main(["up", folder, "one", "two"]) == 0
        known = dict(line.split() for line in capsys.readouterr().out.splitlines())
        assert set(known) == {"one", "two"}
        assert main(["exec", folder, "one", "sh", "-c", "exit 7"]) == 7
        assert main(["kill", folder, "one"]) == 0
        assert main(["exec", folder, "one", "true"]) == 2
        assert "boot it first" in capsys.readouterr().err
        assert main(["boot", folder, "one"]) == 0
        assert main(["exec", folder, "one", "true"]) == 0
        assert main(["boot", folder, "one"]) == 2
        assert main(["cut", folder, "three"]) == 2
        assert "there are one, two" in capsys.readouterr().err
        assert main(["up", folder, "one"]) == 2
        assert "is not empty" in capsys.readouterr().err
    finally:
        assert main(["down", folder]) == 0
    assert main(["down", folder]) == 2
    assert "there is no lab" in capsys.readouterr().err
