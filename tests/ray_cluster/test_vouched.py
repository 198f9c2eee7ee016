"""The token is sent to addresses of the user or of this machine's Ray, never of a run's file."""

import os
import socket
from types import SimpleNamespace

import pytest

from raytrain_plus.elastic.client import control
from raytrain_plus.observe.journal import Journal
from raytrain_plus.ray_cluster import joining, vouched
from raytrain_plus.ray_cluster.gcs import ClusterError, NoHeadError, UnreachableError

TOLD = "10.0.0.9:6379"


@pytest.fixture
def proc(tmp_path):
    """Processes of this user: a raylet, and one that only has an address in its arguments."""
    for number, words in enumerate(
        [
            ("/opt/ray/raylet", "--x=1", "--gcs-address=10.0.0.1:6379"),
            ("/usr/bin/vim", "--gcs-address=10.6.6.6:6379"),
        ]
    ):
        (tmp_path / "proc" / str(number)).mkdir(parents=True)
        (tmp_path / "proc" / str(number) / "cmdline").write_bytes("\0".join(words).encode())
    return tmp_path / "proc"


def test_a_raylet_of_this_user_makes_its_cluster_trusted(proc, monkeypatch):
    monkeypatch.setattr(vouched, "last_started", lambda: None)
    assert vouched.vouched_addresses(proc) == ["10.0.0.1:6379"]
    assert vouched.vouched_addresses(proc / "none") == []
    # The control: the raylet of another user does not.
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    stat = type(proc).stat
    there = lambda path, **more: SimpleNamespace(st_uid=54321, st_mode=stat(path, **more).st_mode)  # noqa: E731
    monkeypatch.setattr(type(proc), "stat", there)
    assert vouched.vouched_addresses(proc) == []


def test_a_file_that_another_user_could_have_written_does_not_count(tmp_path):
    file = tmp_path / "ray_current_cluster"
    assert vouched.last_started(file) is None
    file.write_text(f"{TOLD}\n")
    file.chmod(0o644)
    assert vouched.last_started(file) == TOLD
    link = tmp_path / "link"
    link.symlink_to(file)
    assert vouched.last_started(link) is None
    file.chmod(0o666)
    assert vouched.last_started(file) is None
    file.chmod(0o644)
    owner = file.stat().st_uid
    if owner == 0:
        os.chown(file, 12345, -1)
        assert vouched.last_started(file) is None


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A colleague's run, and the addresses that are joined."""
    Journal(tmp_path).write("run", run="theirs", address=TOLD, total_steps=5, identity={})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = []

    def join(address, **_):
        asked.append(address)
        raise ClusterError("not in a test")

    monkeypatch.setattr(control, "join", join)
    return tmp_path, asked


@pytest.mark.parametrize("do", [control.status, control.stop, control.checkpoint])
def test_no_token_is_sent_to_an_address_that_only_a_journal_names(run, monkeypatch, do):
    folder, asked = run
    monkeypatch.setattr(joining, "vouched_addresses", lambda: ["10.0.0.1:6379"])
    if do is control.status:
        told = do(str(folder), ".")
        assert told["state"] == "unreachable"
        assert f"--address {TOLD}" in told["reason"]
    else:
        with pytest.raises(control.SteeringError, match=f"--address {TOLD}"):
            do(str(folder), ".")
    assert asked == []
    # The controls: the user gives the address, or this machine's Ray has it.
    for address, known in ((TOLD, []), (None, [TOLD])):
        monkeypatch.setattr(joining, "vouched_addresses", lambda known=known: known)
        if do is control.status:
            do(str(folder), ".", address)
        else:
            with pytest.raises(control.SteeringError, match="not in a test"):
                do(str(folder), ".", address)
    assert asked == [TOLD, TOLD]


@pytest.fixture
def recorded(monkeypatch):
    """A port without a server, recorded as the address of the last started Ray."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(joining, "last_started", lambda: address)
        monkeypatch.setattr(joining, "addresses_of_raylets", lambda: ["10.0.0.1:6379"])
        yield address


def test_a_dead_ray_is_not_joined_although_its_address_is_recorded(recorded, monkeypatch):
    assert joining.head_address() is None
    assert joining.head_address("auto") is None
    # The controls: its head may come back while a daemon lives; a given address is used.
    assert joining.head_address(recorded) == recorded
    monkeypatch.setattr(joining, "addresses_of_raylets", lambda: [recorded])
    assert joining.head_address() == recorded


@pytest.mark.parametrize(
    ("error", "joined"),
    [(NoHeadError, False), (UnreachableError, False), (ClusterError, True), (None, True)],
)
def test_a_recorded_ray_that_answers_is_joined_also_if_it_refuses(
    recorded, monkeypatch, error, joined
):
    def check(_):
        if error is not None:
            raise error("no")

    monkeypatch.setattr(joining.Gcs, "check", check)
    assert joining.head_address() == (recorded if joined else None)
