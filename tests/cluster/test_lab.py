"""The lab's hosts: what is private, what is shared, and what of a host can be taken away."""

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

SECONDS = 20.0  # for what takes milliseconds on an idle machine

# Says what it hears, line by line: the other end of a cable.
LISTENER = """
import socket, sys
server = socket.create_server((sys.argv[1], 4000))
print("listening", flush=True)
connection, _ = server.accept()
for line in connection.makefile():
    print(line, end="", flush=True)
print("hung up", flush=True)
"""
# Sends what it reads.
SENDER = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 4000))
for line in sys.stdin:
    connection.sendall(line.encode())
"""
# Tries to connect; one that is not even refused is not heard.
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
    """Return what there is of a lab, or of all: networks and their mounts."""
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    mounts = Path("/proc/self/mounts").read_text()
    mark = "rtp-lab-" if number is None else namespace(number, "")
    return [line for line in (names.stdout + mounts).splitlines() if mark in line]


def on(lab, host, *command):
    """Return what a command on a host prints."""
    done = subprocess.run(
        lab.command(host, command), capture_output=True, text=True, check=True, timeout=SECONDS
    )
    return done.stdout


def start(lab, host, code, *arguments):
    """Start a Python program on a host, to talk with."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    line = lab.command(host, [sys.executable, "-c", code, *arguments])
    return subprocess.Popen(line, text=True, **pipes)


@pytest.fixture
def talk(lab):
    """A program on `right`, and one on `left` that it hears."""
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


def test_hosts_share_what_they_are_given(lab):
    shared = lab.folder.parent / "shared"
    on(lab, "left", "touch", f"{shared}/file")
    assert on(lab, "right", "ls", str(shared)) == "file\n"
    assert (shared / "file").exists()
    code = "import cluster.lab, torch, sys; print(sys.prefix)"
    assert on(lab, "right", "python", "-c", code).strip() == sys.prefix


def test_a_host_without_power_hangs_up(lab, talk):
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
    say(sender, "is anybody there?")
    assert on(lab, "left", *call) == "silence\n"
    # The connection that was there does not end: nothing says that the other has gone.
    lab.kill("left")
    assert select.select([listener.stdout], [], [], 0) == ([], [], [])


def test_a_cable_that_is_plugged_in_again_carries_what_was_said(lab, talk):
    sender, listener = talk
    lab.cut("left")
    say(sender, "is anybody there?")
    lab.join("left")
    assert listener.stdout.readline() == "is anybody there?\n"


def test_labs_side_by_side_do_not_meet(lab, tmp_path):
    with Lab.of(tmp_path / "other", ["left"]) as other:
        assert other.number != lab.number
        assert other.addresses["left"] != lab.addresses["left"]
        on(other, "left", "true")
    on(lab, "left", "true")
    assert traces(other.number) == []


def test_hosts_let_each_other_in_by_ssh(tmp_path):
    require("ssh", ssh.why_not())
    with Lab.of(tmp_path / "lab", ["one", "two"], with_ssh=True) as lab:
        asked = "hostname; command -v ray; pwd"
        assert on(lab, "one", "ssh", "two", asked) == f"two\n{sys.prefix}/bin/ray\n/root\n"
        on(lab, "one", "sh", "-c", "echo mark >here && rsync here two:there")
        assert on(lab, "two", "cat", "/root/there") == "mark\n"
        # It is the same host when it comes back: known, and found at once.
        lab.kill("two")
        lab.boot("two")
        assert on(lab, "one", "ssh", "two", "hostname") == "two\n"
        # The control: who does not have the key stays outside.
        on(lab, "one", "mv", "/root/.ssh/id_ed25519", "/root/.ssh/elsewhere")
        with pytest.raises(subprocess.CalledProcessError):
            on(lab, "one", "ssh", "-o", "BatchMode=yes", "two", "true")
    assert traces(lab.number) == []


def test_a_host_has_no_server_unless_it_is_wanted(lab):
    with pytest.raises(subprocess.CalledProcessError):
        on(lab, "left", "ssh", "-o", "BatchMode=yes", lab.addresses["right"], "true")


def test_nothing_is_left_of_a_lab_that_did_not_come_up(tmp_path, monkeypatch):
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
