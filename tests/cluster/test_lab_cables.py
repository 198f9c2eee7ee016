"""The lab's cables: their bandwidth and their delay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.lab import commands
from cluster.lab.__main__ import main
from cluster.lab.delay import Delay
from cluster.lab.hosts import Lab, why_not
from cluster.lab.names import LabError
from tests.expected import require

# Answers each message that ends with a full stop, with one thread per connection. So a connection
# that was lost on a cut cable does not block later ones.
ANSWERING = """
import socketserver, sys

class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        while heard := self.request.recv(1 << 16):
            if heard.endswith(b"."):
                self.request.sendall(b"!")

class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    disable_nagle_algorithm = True
    handle_error = print

server = Server((sys.argv[1], 4000), Answer)
print("listening", flush=True)
server.serve_forever()
"""
# Prints the least of several times from a message to its answer, in seconds. For a moment after a
# cut, the system remembers that the other end did not answer, and the first connection fails.
ASKING = """
import errno, socket, sys, time
for last in (False, False, True):
    try:
        line = socket.create_connection((sys.argv[1], 4000), timeout=3)
        break
    except OSError as error:
        if last or error.errno != errno.EHOSTUNREACH:
            raise
line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times = []
for _ in range(3):
    start = time.perf_counter()
    line.sendall(b" " * (int(sys.argv[2]) - 1) + b".")
    line.recv(1)
    times.append(time.perf_counter() - start)
print(min(times))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    require("lab", why_not())
    with Lab.of(tmp_path_factory.mktemp("cables") / "lab", ["left", "right"]) as lab:
        address = lab.addresses["right"]
        line = lab.command("right", [sys.executable, "-c", ANSWERING, address])
        with subprocess.Popen(line, text=True, stdout=subprocess.PIPE) as answering:
            assert answering.stdout.readline() == "listening\n"
            yield lab
            lab.kill("right")


def seconds(lab, message_bytes=2):
    """Return the least time from a message of `left` to the answer of `right`."""
    line = [sys.executable, "-c", ASKING, lab.addresses["right"], str(message_bytes)]
    done = subprocess.run(
        lab.command("left", line), capture_output=True, text=True, check=True, timeout=60
    )
    return float(done.stdout)


def carrier(lab, host):
    """Return the id of the process that forwards a host's frames, None if there is none."""
    number = int((lab.folder / host / "delay").read_text())
    line = Path(f"/proc/{number}/cmdline")
    return number if line.exists() and b"cluster.lab.delay" in line.read_bytes() else None


def test_a_slow_cable_has_the_given_bandwidth(lab):
    megabyte = 1_000_000
    assert seconds(lab, megabyte) < 0.3
    lab.slow("left", 20)
    # 0.4 s, less the bytes that the buckets at both ends let through at once.
    assert seconds(lab, megabyte) > 0.33
    lab.slow("left")
    assert seconds(lab, megabyte) < 0.3


def test_a_long_cable_delays_both_directions(lab):
    assert seconds(lab) < 0.05
    lab.delay("left", 50)
    assert seconds(lab) >= 0.1
    lab.delay("left", 1)
    assert 0.002 <= seconds(lab) < 0.1
    first = carrier(lab, "left")
    lab.delay("left")
    assert first is not None
    assert carrier(lab, "left") is None
    assert seconds(lab) < 0.002


def test_a_cable_may_be_slow_long_and_cut(lab):
    lab.delay("left", 20)
    lab.slow("left", 20)
    assert seconds(lab, 1_000_000) > 0.33
    lab.cut("left")
    with pytest.raises(subprocess.CalledProcessError):
        seconds(lab)
    lab.join("left")
    assert seconds(lab) >= 0.04
    lab.kill("left")
    lab.boot("left")  # with a new cable
    assert seconds(lab) < 0.04
    assert seconds(lab, 1_000_000) < 0.3


def test_impossible_amounts_are_refused(lab):
    with pytest.raises(LabError, match="0 Mbit/s carries nothing"):
        lab.slow("left", 0)
    with pytest.raises(LabError, match="-1 ms cannot be"):
        lab.delay("left", -1)
    with pytest.raises(LabError, match="no host 'middle'"):
        lab.delay("middle", 1)


def test_a_removed_long_cable_leaves_nothing_behind(tmp_path):
    require("lab", why_not())
    folder = str(tmp_path / "lab")
    assert main(["up", folder, "one"]) == 0
    try:
        assert main(["delay", folder, "one", "5"]) == 0
        assert main(["slow", folder, "one", "100"]) == 0
        number = carrier(Lab(tmp_path / "lab"), "one")
        os.kill(number, 0)  # the control: it exists
    finally:
        assert main(["down", folder]) == 0
    line = Path(f"/proc/{number}/cmdline")
    assert not line.exists() or line.read_bytes() == b""


@given(
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([3, 4]), st.binary(max_size=3))),
)
def test_frames_are_delayed_and_keep_their_order(wait, frames):
    delay, now, came, went = Delay(wait), 0.0, [], []
    for passed, end, frame in frames:
        now += passed
        went += [(now, *one) for one in delay.due(now)]
        delay.put(now, end, frame)
        came.append((now, end, frame))
    while (pause := delay.pause(now)) is not None:
        now += pause
        # After a pause that rounding has made too short, a tiny one follows.
        went += [(now, *one) for one in delay.due(now)]
        now += 1e-12
    assert [one[1:] for one in went] == [one[1:] for one in came]
    assert all(out - at >= wait - 1e-9 for (at, *_), (out, *_) in zip(came, went, strict=True))
    assert delay.due(now + 10) == []


def test_a_cables_limit_is_set_and_removed_at_both_ends():
    slow, free = (commands.throttle(7, "up", mbit) for mbit in (12.5, None))
    assert [line[:8] for line in slow] == [line[:8] for line in free]
    assert [line[2] for line in slow] == ["rtp-lab-7-switch", "rtp-lab-7-up"]
    assert all("12.5mbit" in line for line in slow)
    assert all(line[8:] == ["noqueue"] for line in free)
