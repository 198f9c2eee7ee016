"""The lab's pure parts: names, networks, command lines."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.lab import commands
from cluster.lab.__main__ import options
from cluster.lab.names import SWITCH, LabError, addresses, free_number, hosts_file, namespace

NUMBERS = st.integers(1, 254)
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,7}", fullmatch=True).filter(
    lambda name: name not in (SWITCH, "localhost")
)


@given(st.sets(NUMBERS, max_size=253), st.lists(st.text(max_size=8)))
def test_a_new_lab_has_an_unused_number(taken, others):
    number = free_number([*(namespace(n, "host") for n in taken), *others])
    assert number not in taken
    assert 1 <= number <= 254


def test_more_labs_than_networks_are_refused():
    all_names = [namespace(n, SWITCH) for n in range(1, 255)]
    assert free_number(all_names[:-1]) == 254
    with pytest.raises(LabError, match="take some down"):
        free_number(all_names)


@given(NUMBERS, NUMBERS, st.lists(NAMES, min_size=1, max_size=200, unique=True))
def test_no_two_hosts_have_the_same_address(one, other, hosts):
    here, there = addresses(one, hosts), addresses(other, hosts)
    assert list(here) == hosts
    assert len(set(here.values())) == len(hosts)
    assert all(address.startswith(f"10.77.{one}.") for address in here.values())
    assert one == other or not set(here.values()) & set(there.values())


@pytest.mark.parametrize(
    ("hosts", "reason"),
    [
        ([], "1 to 200 hosts, not 0"),
        (["a", "b", "a"], "'a' is named twice"),
        (["Head"], "'Head' cannot be"),
        (["a b"], "'a b' cannot be"),
        ([SWITCH], "'switch' cannot be"),
        (["muchtoolong"], "'muchtoolong' cannot be"),
    ],
)
def test_impossible_hosts_are_refused(hosts, reason):
    with pytest.raises(LabError, match=reason):
        addresses(1, hosts)


def test_hosts_find_each_other():
    known = addresses(3, ["head", "n1"])
    assert hosts_file(known) == "127.0.0.1 localhost\n10.77.3.10 head\n10.77.3.11 n1\n"


def test_everything_that_is_made_is_named_after_the_lab():
    lines = [
        commands.claim(7),
        *commands.start_switch(7),
        *commands.plug_in(7, "up", "10.77.7.10"),
        *commands.unplug(7, "up"),
        commands.cable(7, "up", joined=False),
        commands.remove_switch(7),
    ]
    assert all(line[0] == "ip" for line in lines)
    # A command that does not run in a namespace of ours makes or removes one.
    for line in lines:
        assert "rtp-lab-7-" in (line[2] if line[1] == "-n" else line[3])


def test_pulling_and_plugging_a_cable_differ_in_one_word():
    pulled, plugged = (commands.cable(1, "up", joined=joined) for joined in (False, True))
    assert pulled[:-1] == plugged[:-1]
    assert (pulled[-1], plugged[-1]) == ("down", "up")


@pytest.mark.parametrize("folder", ["/tmp/lab/n1", "/root/n1", "/run/n1", "/dev/shm/n1", "/var/n1"])
def test_a_host_mounts_the_folder_that_hides_its_own_last(folder):
    order = commands.in_mounting_order(Path(folder))
    assert set(order) == {Path("/root"), Path("/tmp"), Path("/dev/shm"), Path("/run")}
    hiding = [place for place in order if Path(folder).is_relative_to(place)]
    assert hiding == [] or hiding == order[-1:]


def test_visible_folders_are_bound_if_they_would_be_hidden():
    folder = Path("/tmp/my lab/n1")
    script = commands.boot_script("n1", folder, [Path("/root/.env"), Path("/opt/env")])
    lines = [shlex.split(line) for line in script.splitlines()]
    bound = ["mount", "--rbind", "/root/.env", "/tmp/my lab/n1/disk/root/.env"]
    hidden = ["mount", "--rbind", "/tmp/my lab/n1/disk/root", "/root"]
    assert lines.index(bound) < lines.index(hidden)
    assert "/opt/env" not in script  # it is visible in any case


def test_a_command_on_a_host_inherits_only_what_is_listed():
    line = commands.enter(42, ["ls", "a b"], {"HOME": "/mine", "MORE": "1 2"}, "/env/bin")
    assert line[:2] == ["nsenter", "--target=42"]
    assert line[-2:] == ["ls", "a b"]
    inside = line[line.index("env") :]
    assert inside[1] == "-i"
    assert "HOME=/mine" in inside
    assert "MORE=1 2" in inside
    assert next(word for word in inside if word.startswith("PATH=")).startswith("PATH=/env/bin:/")


def test_a_command_keeps_its_own_options():
    chosen = options(["exec", "folder", "n1", "ls", "--all", "-l"])
    assert (chosen.host, chosen.command) == ("n1", ["ls", "--all", "-l"])
