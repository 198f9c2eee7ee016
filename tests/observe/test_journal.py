"""The journal loses no whole line and shows no torn one, wherever its writer was killed."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.observe.journal import FILE_NAME, Journal, each, follow, read

EVENTS = [
    {"event": "run", "time": 1.5, "run": "é\n\r\u2028 name"},
    {"event": "step", "time": 2.0, "step": 1, "loss": 0.1, "loss_hex": (0.1).hex()},
    {"event": "end", "time": 3.0, "metrics": {"accuracy": [0.5, {"deep": None}]}},
]


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path)
    yield opened
    opened.close()


def test_what_is_written_is_read_back_in_order(journal, tmp_path):
    journal.write_all(EVENTS[:2])
    journal.write_all(EVENTS[2:])
    assert read(tmp_path) == EVENTS
    assert read(tmp_path / FILE_NAME) == EVENTS
    assert len((tmp_path / FILE_NAME).read_text().split("\n")) == len(EVENTS) + 1


def test_every_event_has_its_name_and_the_time(journal, tmp_path):
    written = journal.write("fault", step=3, action="kill")
    assert read(tmp_path) == [written]
    assert written["event"] == "fault"
    assert written["time"] > 1.7e9  # seconds since 1970, not since the machine started
    assert written["step"] == 3


def test_losses_come_back_with_every_bit(journal, tmp_path):
    loss = math.nextafter(0.1, 1)
    journal.write("step", loss=loss, loss_hex=loss.hex())
    event = read(tmp_path)[0]
    assert event["loss"] == float.fromhex(event["loss_hex"]) == loss != 0.1


def test_events_written_together_reach_the_file_together(tmp_path):
    journal = Journal(tmp_path)
    journal._file.close()
    writes = []

    class File:
        write = writes.append

        def flush(self):
            writes.append("flush")

    journal._file = File()
    journal.write_all(EVENTS)
    assert [json.loads(line) for line in writes[0].splitlines()] == EVENTS
    assert writes[1:] == ["flush"]


@given(st.data())
def test_a_journal_cut_anywhere_shows_its_whole_lines(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    path = folder / FILE_NAME
    lines = [json.dumps(event).encode() + b"\n" for event in EVENTS]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = sum(1 for i in range(len(lines)) if len(b"".join(lines[: i + 1])) <= cut)
    assert read(folder) == EVENTS[:whole]

    # Whoever writes next closes the torn line and loses nothing of its own.
    again = Journal(folder)
    again.write_all(EVENTS[:1])
    again.close()
    found = read(folder)
    assert found[:whole] == EVENTS[:whole]
    assert found[-1] == EVENTS[0]
    ends_before_its_newline = cut + 1 in {len(b"".join(lines[: i + 1])) for i in range(3)}
    assert len(found) == whole + 1 + ends_before_its_newline


def test_a_torn_line_that_nobody_closes_would_swallow_the_next(tmp_path):
    """The negative control of closing it."""
    path = tmp_path / FILE_NAME
    path.write_bytes(b'{"event": "st')
    with path.open("ab") as file:
        file.write(json.dumps(EVENTS[0]).encode() + b"\n")
    assert read(tmp_path) == []


@given(st.lists(st.integers(0, 400)))
def test_following_gives_every_event_once_whatever_has_arrived(tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("followed") / FILE_NAME
    content = b"".join(json.dumps(event).encode() + b"\n" for event in EVENTS)
    assert follow(path) == ([], 0)
    seen, offset = [], 0
    for cut in sorted(min(cut, len(content)) for cut in [*cuts, len(content)]):
        path.write_bytes(content[:cut])
        events, offset = follow(path, offset)
        seen += events
    assert seen == EVENTS
    assert offset == len(content)
    assert follow(path, offset) == ([], offset)


def test_a_long_journal_is_read_line_by_line_and_without_a_torn_end(journal, tmp_path):
    journal.write_all(EVENTS)
    with journal.path.open("a") as file:
        file.write('{"event": "torn')
    assert list(each(journal.path)) == EVENTS
    with pytest.raises(FileNotFoundError):
        next(each(tmp_path / "none"))


def test_lines_that_are_no_events_are_left_out(tmp_path):
    path = tmp_path / FILE_NAME
    path.write_text('\n[1]\n{"time": 1}\nnonsense\n7\n{"event": "end"}\n\xff\n', "latin-1")
    assert read(tmp_path) == [{"event": "end"}]


def test_no_journal_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{FILE_NAME}: is it the folder of a run\?"):
        read(tmp_path)


def test_a_second_writer_appends(journal, tmp_path):
    journal.write_all(EVENTS[:1])
    other = Journal(tmp_path)
    other.write_all(EVENTS[1:2])
    other.close()
    journal.write_all(EVENTS[2:])
    assert read(tmp_path) == EVENTS
