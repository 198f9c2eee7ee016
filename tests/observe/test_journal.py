"""The journal loses no complete line and shows no other, wherever its writer was killed."""

import json
import math
import os
import random
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.observe import journal as journals
from raytrain_plus.observe.events import EVENTS as KINDS
from raytrain_plus.observe.events import OPENING, VERSION, EventError, fields_of
from raytrain_plus.observe.journal import (
    FILE_NAME,
    Journal,
    JournalError,
    each,
    follow,
    line_of,
    newest,
    newest_of,
    read,
)

EVENTS = [
    {"event": "run", "time": 1.5, "version": 1, "run": "é\n\r\u2028 name", "total_steps": 1},
    {"event": "step", "time": 2.0, "step": 1, "loss": 0.1, "loss_hex": (0.1).hex()},
    {"event": "end", "time": 3.0, "metrics": {"accuracy": [0.5, {"deep": None}]}},
]


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Return the content of a file with these events."""
    folder = tmp_path_factory.mktemp("content")
    opened = Journal(folder)
    opened.write_all(EVENTS)
    opened.close()
    return (folder / FILE_NAME).read_bytes()


def test_events_are_read_in_the_order_of_writing(journal, tmp_path):
    journal.write_all(EVENTS[:2])
    journal.write_all(EVENTS[2:])
    assert read(tmp_path) == with_crc(tmp_path)
    assert without_crc(read(tmp_path)) == EVENTS
    assert without_crc(read(tmp_path / FILE_NAME)) == EVENTS
    assert len((tmp_path / FILE_NAME).read_text().split("\n")) == len(EVENTS) + 1


def with_crc(folder):
    """Read the lines as another program, which expects one JSON object per line."""
    lines = (folder / FILE_NAME).read_text().splitlines()
    for line in lines:
        body, _, rest = line.partition(', "crc": "')
        assert rest == f'{zlib.crc32(body.encode()):08x}"}}'
    return [{k: v for k, v in json.loads(line).items() if k != "crc"} for line in lines]


def without_crc(events):
    assert all("crc" not in event for event in events)
    return events


def test_every_event_has_its_name_and_the_time(journal, tmp_path):
    written = journal.write("fault", step=3, action="kill")
    assert read(tmp_path) == [written]
    assert written["event"] == "fault"
    assert written["time"] > 1.7e9  # seconds since 1970, not since the machine's start
    assert written["step"] == 3


def test_losses_are_read_with_every_bit(journal, tmp_path):
    loss = math.nextafter(0.1, 1)
    journal.write("step", step=1, loss=loss, loss_hex=loss.hex())
    event = read(tmp_path)[0]
    assert event["loss"] == float.fromhex(event["loss_hex"]) == loss != 0.1


def test_events_written_together_reach_the_file_in_one_call(journal, monkeypatch):
    sizes, write = [], os.write
    monkeypatch.setattr(
        os, "write", lambda file, data: sizes.append(len(data)) or write(file, data)
    )
    journal.write_all([{**EVENTS[1], "step": step} for step in range(1, 1001)])
    assert len(sizes) == 1
    assert sizes[0] > 100_000


def test_the_file_is_synced_after_events_that_a_resume_needs(journal, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    journal.write("step", step=1, loss=0.5)
    journal.write("worker", worker="w1", state="ready")
    assert synced == []  # the control: a step is not synced to the disk
    events = {"run": {}, "checkpoint": {}, "withdrawn": {"step": 1}, "stop": {}, "end": {}}
    for count, (event, fields) in enumerate(events.items(), 1):
        journal.write(event, **fields)
        assert len(synced) == count


def test_a_line_that_does_not_fit_onto_the_disk_leaves_nothing_behind(
    journal, tmp_path, monkeypatch
):
    journal.write_all(EVENTS[:1])
    write = os.write

    def full(file, data):
        monkeypatch.setattr(os, "write", fails)
        return write(file, data[:20])

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        journal.write_all(EVENTS[1:])
    monkeypatch.setattr(os, "write", write)
    assert read(tmp_path) == EVENTS[:1]
    journal.write_all(EVENTS[1:])
    assert read(tmp_path) == EVENTS


@given(st.data())
def test_a_truncated_journal_shows_its_complete_lines(tmp_path_factory, content, data):
    folder = tmp_path_factory.mktemp("cut")
    path = folder / FILE_NAME
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    assert read(folder) == EVENTS[:whole]
    again = Journal(folder)  # removes the incomplete line, and loses none of its own
    again.write_all(EVENTS[:1])
    again.close()
    assert read(folder) == [*EVENTS[:whole], EVENTS[0]]


def test_an_incomplete_line_that_is_not_removed_damages_the_next(tmp_path):
    """The negative control of removing it."""
    path = tmp_path / FILE_NAME
    path.write_bytes(b'{"event": "st')
    with path.open("ab") as file:
        file.write(json.dumps(EVENTS[0]).encode() + b"\n")
    with pytest.raises(JournalError, match="line 1"):
        read(tmp_path)


@given(st.lists(st.integers(0, 600)))
def test_following_gives_every_event_once_for_any_chunks(tmp_path_factory, content, cuts):
    path = tmp_path_factory.mktemp("followed") / FILE_NAME
    assert follow(path) == ([], 0)
    seen, offset = [], 0
    for cut in sorted(min(cut, len(content)) for cut in [*cuts, len(content)]):
        path.write_bytes(content[:cut])
        events, offset = follow(path, offset)
        seen += events
    assert seen == EVENTS
    assert offset == len(content)
    assert follow(path, offset) == ([], offset)


def test_a_long_journal_is_followed_bit_by_bit(journal):
    steps = [{**EVENTS[1], "step": step} for step in range(1, 301)]
    journal.write_all(steps)
    seen, offset, calls = [], 0, 0
    while len(seen) < len(steps):
        events, offset = follow(journal.path, offset, most=1000)
        assert 0 < len(events) < 12
        seen += events
        calls += 1
    assert seen == steps
    assert calls > 30


def test_a_long_journal_is_read_line_by_line_and_without_a_torn_end(journal, tmp_path):
    journal.write_all(EVENTS)
    with journal.path.open("a") as file:
        file.write('{"event": "torn')
    assert list(each(journal.path)) == EVENTS
    assert list(each(journal.path, {"run", "end"})) == [EVENTS[0], EVENTS[2]]
    with pytest.raises(FileNotFoundError):
        next(each(tmp_path / "none"))


@pytest.mark.parametrize("at_once", [200, 1000, 4 << 20])
def test_the_newest_of_each_kind_is_found_from_the_end(journal, monkeypatch, at_once):
    monkeypatch.setattr(journals, "AT_ONCE", at_once)
    journal.write_all(EVENTS)
    journal.write_all([{**EVENTS[1], "step": step} for step in range(1, 50)])
    journal.write("run", run="again")
    journal.write_all([{**EVENTS[1], "step": step} for step in range(50, 90)])
    with journal.path.open("a") as file:
        file.write('{"event": "torn')
    events = read(journal.path)
    kinds = ("run", "step", "evaluate", "end")
    found = newest(journal.path, kinds)
    assert list(found) == ["end", "run", "step"]
    assert list(found.values()) == [
        [event for event in events if event["event"] == kind][-1] for kind in found
    ]


@pytest.mark.parametrize(
    "line",
    [
        *("", "[1]", '{"time": 1}', "nonsense", "7", '{"event": "step"}', '{"event": 3}'),
        '{"event": "step", "step": -1, "loss": 0.5}',
        '{"event": "step", "step": true, "loss": 0.5}',
        '{"event": "step", "step": 1, "loss": "0.5"}',
        '{"event": "step", "step": 1, "loss": 0.5, "loss_hex": "0y1"}',
        '{"event": "step", "step": 1e99, "loss": 0.5}',
        '{"event": "end", "time": 1e300}',
        '{"event": "evaluate", "step": 1, "metrics": [1]}',
        "[" * 100_000,
        '{"event": "step", "step": ' + "9" * 5000 + "}",
    ],
)
def test_a_line_that_is_not_an_event_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / FILE_NAME
    end = line_of({"event": "end"})
    body = line[:-1].encode()  # with a right checksum
    path.write_bytes(end + b'%b, "crc": "%08x"}\n' % (body, zlib.crc32(body)) + end)
    for reading in (read, lambda path: list(each(path)), follow):
        with pytest.raises(JournalError, match=rf"{FILE_NAME}, line 2: .*head -n 1\b"):
            reading(path)
    path.write_bytes(end + end)  # the control
    assert len(read(path)) == 2


@pytest.mark.parametrize(
    ("event", "why"),
    [
        ({"event": "run", "version": VERSION + 1}, f"has format {VERSION + 1}, .*format {VERSION}"),
        ({"event": "session", "version": 0, "sweep": {}}, "has format 0"),
        ({"event": "leap"}, f"event 'leap' is unknown .*format {VERSION}"),
    ],
)
def test_a_journal_of_another_version_is_an_error_that_names_the_line(tmp_path, event, why):
    path = tmp_path / FILE_NAME
    step = line_of(EVENTS[1])
    path.write_bytes(step + line_of(event) + step)
    ways = (read, follow, lambda p: list(each(p, {"step"})), lambda p: newest(p, {"end"}))
    for reading in ways:
        with pytest.raises(JournalError, match=rf"{FILE_NAME}, line 2: .*{why}"):
            reading(path)
    path.write_bytes(step + line_of({"event": "run", "version": VERSION}) + step)  # the control
    assert len(read(path)) == 3


def test_without_its_version_a_journal_is_not_read(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(line_of({"event": "run", "run": "r"}))
    with pytest.raises(JournalError, match=r"line 1: .*a 'run' event has no 'version'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("event", "fields", "why"),
    [
        ("leap", {}, "the event 'leap' is unknown"),
        ("worker", {"worker": "w1", "state": "lost", "mood": "bad"}, "has no field mood"),
        ("worker", {"worker": "w1"}, "has no 'state'"),
        ("target", {"workers": "three"}, "is 'three', not a whole number"),
        ("generation", {"causes": [{"kind": "bored"}]}, "not a list of causes"),
    ],
)
def test_events_that_readers_would_refuse_are_not_written(journal, tmp_path, event, fields, why):
    group = {"generation": 1, "step": 0, "workers": 1, "pause_seconds": 0.0}
    with pytest.raises(EventError, match=why):
        journal.write(event, **(group if event == "generation" else {}), **fields)
    journal.write("generation", **group, causes=[{"kind": "start"}])  # the control
    assert len(read(tmp_path)) == 1


def test_the_docstring_of_the_journal_names_every_event():
    named = set(re.findall(r"`(\w+)`", journals.__doc__))
    assert set(KINDS) <= named
    assert set(OPENING) == {"run", "session"}


def test_every_field_of_every_event_has_a_meaning():
    fields = [field for kind in KINDS for field in fields_of(kind).values()]
    assert len(fields) > 100
    assert all(field.meaning and field.check.allowed for field in fields)


def test_the_newest_in_memory_are_those_of_a_file(journal):
    journal.write_all([*EVENTS, {"event": "run", "time": 4.0, "version": VERSION}, EVENTS[1]])
    kinds = ("run", "step", "end")
    found = newest_of(read(journal.path), kinds)
    assert list(found) == ["end", "run", "step"]
    assert found == newest(journal.path, kinds)


def test_a_line_without_its_checksum_is_an_error_that_names_it(tmp_path):
    path = tmp_path / FILE_NAME
    whole = line_of({"event": "end", "time": 1.0})
    for bare in (b'{"event": "step", "step": 1, "loss": 0.5}\n', b"{}\n", b"\n"):
        path.write_bytes(whole + bare + whole)
        for reading in (read, lambda path: list(each(path, {"end"})), follow):
            with pytest.raises(JournalError, match=r"line 2: .*no checksum.*head -n 1\b"):
                reading(path)
        path.write_bytes(whole + bare)
        with pytest.raises(JournalError, match="no checksum"):
            newest(path, {"end"})
        path.write_bytes(whole + bare[:-1])  # an incomplete last line does not count
        assert len(read(path)) == 1


def test_every_flipped_bit_is_noticed(tmp_path, content):
    """Each flip changes no event, is an error, or makes the last line incomplete."""
    draw = random.Random(17)
    path, refused = tmp_path / FILE_NAME, 0
    for _ in range(1500):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read(tmp_path)
        except JournalError:
            refused += 1
            continue
        # Without its marker, a checksum is one more field.
        said = [{k: event[k] for k in told} for event, told in zip(found, EVENTS, strict=False)]
        assert said == EVENTS[: len(found)]
    assert refused > 1400


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "MOST_LINE", 1000)
    (tmp_path / FILE_NAME).write_bytes(b"x" * 5000)
    with pytest.raises(JournalError, match="more than 1000 bytes"):
        read(tmp_path)


def test_a_missing_journal_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{FILE_NAME}: is it the folder of a run\?"):
        read(tmp_path)


def test_a_second_writer_appends(journal, tmp_path):
    journal.write_all(EVENTS[:1])
    other = Journal(tmp_path)
    other.write_all(EVENTS[1:2])
    other.close()
    journal.write_all(EVENTS[2:])
    assert read(tmp_path) == EVENTS


def test_no_secret_reaches_the_journal(journal):
    written = journal.write(
        "run",
        run="a",
        total_steps=1,
        elastic={
            "checkpoint_storage": "https://user:hunter2@host/x?X-Amz-Signature=abcdef",
            "secret": "hunter2",
        },
    )
    assert "hunter2" not in journal.path.read_text()
    assert "abcdef" not in journal.path.read_text()
    assert "host" in journal.path.read_text()
    assert read(journal.path) == [written]
