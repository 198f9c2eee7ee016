"""Messages as frames: they arrive whole, in their memory, however the bytes come."""

import socket
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.training import frames
from raytrain_plus.training.frames import Links, generation_of, greeted, greeting, tag_of

GENERATION = 5
PATIENCE = 20.0


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    other.settimeout(PATIENCE)
    links = Links(GENERATION, {1: one})
    yield links, other
    one.close()
    other.close()


def frame(number, content, generation=GENERATION):
    return struct.pack("!QQ", tag_of(generation, number), len(content)) + content


def expect(links, number, size):
    box = bytearray(size)
    return box, links.post([], [(1, tag_of(GENERATION, number), memoryview(box))])


def wait(links, posted):
    links.wait(posted)
    assert not posted.left, posted.lost


def test_tags_hold_the_generation():
    assert generation_of(tag_of(7, 3)) == 7
    assert tag_of(7, 3) != tag_of(7, 4)
    assert generation_of(tag_of(7, (1 << 40) - 1)) == 7
    assert generation_of(tag_of(7, 1 << 40)) == 7  # counted in a circle
    assert greeted(greeting(9)) == 9
    with pytest.raises(ConnectionError):
        greeted(frame(1, b""))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=8),
    st.data(),
)
def test_any_order_of_frames_and_any_cuts_give_each_message_its_bytes(contents, data):
    order = data.draw(st.permutations(range(len(contents))))
    stream = b"".join(frame(number + 1, contents[number]) for number in order)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=6)))
    one, other = socket.socketpair()
    with one, other:
        links = Links(GENERATION, {1: one})
        boxes = []
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            if start < stop:
                other.sendall(stream[start:stop])
            if len(boxes) < len(contents):
                boxes.append(expect(links, len(boxes) + 1, len(contents[len(boxes)])))
        while len(boxes) < len(contents):
            boxes.append(expect(links, len(boxes) + 1, len(contents[len(boxes)])))
        for _, posted in boxes:
            wait(links, posted)
        assert [bytes(box) for box, _ in boxes] == contents
        assert links.idle() == {1}


def test_late_frames_of_an_older_generation_are_dropped(pair):
    links, other = pair
    other.sendall(frame(1, b"late" * 50_000, GENERATION - 1) + frame(1, b"now"))
    box, posted = expect(links, 1, 3)
    wait(links, posted)
    assert bytes(box) == b"now"


def test_a_frame_of_a_later_generation_is_a_lost_peer(pair):
    links, other = pair
    other.sendall(frame(1, b"now", GENERATION + 1))
    box, posted = expect(links, 1, 3)
    links.wait(posted)
    assert "generation 6" in posted.lost
    assert bytes(box) == b"\0\0\0"
    assert links.idle() == set()


@pytest.mark.parametrize("size", [2, 4])
def test_a_frame_of_another_size_is_refused_before_a_byte_of_it_is_kept(pair, size):
    links, other = pair
    other.sendall(frame(1, b"abc"))
    box, posted = expect(links, 1, size)
    links.wait(posted)
    assert posted.lost == f"it sent 3 bytes where {size} are expected"
    assert not any(box)


def test_an_early_frame_of_another_size_is_refused(pair):
    links, other = pair
    other.sendall(frame(2, b"abc") + frame(1, b"x"))
    _, first = expect(links, 1, 1)
    wait(links, first)
    _, second = expect(links, 2, 4)
    assert second.lost == "it sent 3 bytes where 4 are expected"


def test_a_length_that_nothing_waits_for_takes_no_memory(pair):
    links, other = pair
    other.sendall(struct.pack("!QQ", tag_of(GENERATION, 9), 1 << 60))
    _, posted = expect(links, 1, 3)
    links.wait(posted)
    assert "1,152,921,504,606,846,976 bytes that nothing waits for" in posted.lost


def test_two_that_send_much_at_once_do_not_wait_for_each_other(pair):
    links, other = pair
    other.setblocking(False)
    far = Links(GENERATION, {1: other})
    size = 5_000_000
    tag = tag_of(GENERATION, 1)
    here, there = bytearray(size), bytearray(size)
    mine = links.post([(1, tag, memoryview(b"a" * size))], [(1, tag, memoryview(here))])
    theirs = far.post([(1, tag, memoryview(b"b" * size))], [(1, tag, memoryview(there))])
    assert mine.left == theirs.left == 2  # the control: the kernel does not hold all of it
    thread = threading.Thread(target=far.wait, args=(theirs,), daemon=True)
    thread.start()
    wait(links, mine)
    thread.join(PATIENCE)
    assert (here, there) == (b"b" * size, b"a" * size)
    assert links.idle() == far.idle() == {1}


def test_many_small_messages_leave_with_few_calls(pair, monkeypatch):
    links, other = pair
    calls = []
    send = socket.socket.sendmsg

    class Counting:
        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def sendmsg(self, views):
            calls.append(len(views))
            return send(self._inner, views)

    link = links._links[1]
    monkeypatch.setattr(link, "socket", Counting(link.socket))
    contents = [bytes([n]) * 10 for n in range(100)]
    sends = [(1, tag_of(GENERATION, n + 1), memoryview(c)) for n, c in enumerate(contents)]
    assert not links.post(sends, []).left
    expected = b"".join(frame(n + 1, c) for n, c in enumerate(contents))
    got = b""
    while len(got) < len(expected):
        got += other.recv(1 << 16)
    assert got == expected
    assert len(calls) <= 5


def test_two_threads_that_wait_both_get_their_messages(pair):
    links, other = pair
    boxes = [expect(links, number, 2) for number in (1, 2)]
    done = []

    def run(n):
        links.wait(boxes[n][1])
        done.append(n)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in (0, 1)]
    for thread in threads:
        thread.start()
    other.sendall(frame(2, b"bb"))
    threads[1].join(PATIENCE)
    assert done == [1]  # whichever of the two polls
    other.sendall(frame(1, b"aa"))
    threads[0].join(PATIENCE)
    assert [bytes(box) for box, _ in boxes] == [b"aa", b"bb"]


def test_an_end_ends_waits_of_now_and_of_later(pair):
    links, other = pair
    box, posted = expect(links, 1, 3)
    thread = threading.Thread(target=links.wait, args=(posted,), daemon=True)
    thread.start()
    links.end("over")
    thread.join(PATIENCE)
    assert not thread.is_alive()
    links.wait(posted)  # at once
    assert posted.left == 1
    assert not any(box)
    assert other.recv(1) == b""


def test_what_had_arrived_before_a_peer_was_lost_is_received(pair):
    links, other = pair
    other.sendall(frame(1, b"last"))
    other.close()
    box, posted = expect(links, 1, 4)
    wait(links, posted)
    assert bytes(box) == b"last"
    _, missing = expect(links, 2, 4)
    links.wait(missing)
    assert missing.lost == "it has closed the connection"
    sent = links.post([(1, tag_of(GENERATION, 1), memoryview(b"x"))], [])
    links.wait(sent)
    assert sent.lost


def test_a_send_that_is_under_way_keeps_the_connection_from_the_next_generation(pair):
    links, _ = pair
    posted = links.post([(1, tag_of(GENERATION, 1), memoryview(bytes(20_000_000)))], [])
    assert posted.left == 1
    assert links.idle() == set()


def test_early_frames_are_limited(pair, monkeypatch):
    monkeypatch.setattr(frames, "_MOST_EARLY", 100)
    links, other = pair
    other.sendall(frame(2, bytes(100)))
    other.sendall(frame(3, bytes(101)))
    _, posted = expect(links, 1, 1)
    links.wait(posted)
    assert "101 bytes that nothing waits for" in posted.lost


def test_it_is_known_whose_message_a_thread_waits_for():
    sockets = [socket.socketpair() for _ in range(3)]
    links = Links(GENERATION, {place: ours for place, (ours, _) in enumerate(sockets)})
    box = bytearray(1)

    def post(*places):
        tag = tag_of(GENERATION, 1 if len(places) > 1 else 2)
        return links.post([], [(place, tag, memoryview(box)) for place in places])

    waited, _ = post(1, 2), post(0)
    assert links.awaited() is None  # posted, but no thread waits
    thread = threading.Thread(target=links.wait, args=(waited,), daemon=True)
    thread.start()
    for place in (1, 2):
        while (found := links.awaited()) != place:
            assert found in (None, 1)  # never 0, for whose message no thread waits
        sockets[place][1].sendall(frame(1, b"x"))
    thread.join(PATIENCE)
    assert links.awaited() is None
    for ours, theirs in sockets:
        ours.close()
        theirs.close()
