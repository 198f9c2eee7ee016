"""A logger gets each row of a run once, in order, whatever fails, and whenever its process ends."""

import csv
import math
import random
from pathlib import Path

import pytest

from raytrain_plus.loggers import CSVLogger, Logger, LoggerError
from raytrain_plus.loggers.feed import Feed, await_all, read_cursor
from raytrain_plus.loggers.naming import check_loggers, make_logger, names_of, parse_logger
from raytrain_plus.loggers.rows import Rows, flat
from raytrain_plus.observe.journal import FILE_NAME, Journal
from tests.observe import journals


def events(steps=6):
    yield journals.run_line(0.0, run_id="r1", batch_tokens=64)
    yield journals.generation(9.0, 1, 0, ["w0"])
    for i in range(1, steps + 1):
        yield journals.step(10.0 + i, i) | {"logged": {"rate": 0.1 * i, "odd": "nan"}}
        if i % 3 == 0:
            yield journals.evaluation(10.5 + i, i, accuracy=i / 10, table=[1, {"a": 2}], no="x")
    yield {"event": "checkpoint", "time": 20.0, "step": 6, "folder": "/runs/c_6", "metrics": {}}
    yield journals.end(21.0, steps)


def write(folder, told):
    opened = Journal(folder)
    opened.write_all([event | {"time": float(event["time"])} for event in told])
    opened.close()


class Kept(Logger):
    """Keeps what it gets, beyond its own life."""

    def __init__(self):
        self.opened, self.rows, self.ends, self.fails = [], [], [], 0

    def open(self, run):
        self.opened.append(run)

    def write(self, rows):
        if self.fails:
            self.fails -= 1
            raise OSError("no route to host, password=hunter22")
        self.rows += rows

    def close(self, summary):
        self.ends.append(summary)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def until_done(feed, clock, most=200):
    for _ in range(most):
        feed.look()
        clock.now += 1.0
        if feed.is_done:
            return
    raise AssertionError(feed.cursor)


def test_a_logger_gets_all_that_happened_in_order(tmp_path):
    write(tmp_path, events())
    kept, clock = Kept(), Clock()
    until_done(Feed("kept", lambda: kept, tmp_path, "a sweep", clock), clock)
    (run,) = kept.opened
    assert (run.name, run.run_id, run.group, run.step) == ("a run", "r1", "a sweep", 0)
    assert run.config["identity"]["seed"] == 17
    assert "claim" not in run.config
    positions = [row.position for row in kept.rows]
    assert positions == sorted(set(positions))
    losses = {row.step: row.values["loss"] for row in kept.rows if "loss" in row.values}
    assert losses == {i: 2.0 / i for i in range(1, 7)}
    first = next(row for row in kept.rows if "loss" in row.values)
    assert first.values["rate"] == 0.1
    assert math.isnan(first.values["odd"])
    (third,) = [
        row.values for row in kept.rows if row.step == 3 and "evaluation/accuracy" in row.values
    ]
    assert third == {
        "evaluation/accuracy": 0.3,
        "evaluation/table/0": 1.0,
        "evaluation/table/1/a": 2.0,
    }
    texts = [row.texts for row in kept.rows if row.texts]
    assert texts[0].keys() == {"group changed"}
    assert texts[-1] == {"checkpoint": "/runs/c_6"}
    assert any(row.values.get("tokens_per_second", 0) > 0 for row in kept.rows)
    assert [end["state"] for end in kept.ends] == ["finished"]


def test_a_logger_that_fails_is_named_and_tried_again_without_loss(tmp_path):
    write(tmp_path, events())
    kept, clock = Kept(), Clock()
    kept.fails = 5
    feed = Feed("kept", lambda: kept, tmp_path, None, clock)
    feed.look()
    assert "no route to host" in read_cursor(tmp_path, "kept").trouble
    assert "hunter22" not in read_cursor(tmp_path, "kept").trouble
    looks = 0
    while kept.fails:  # the intervals grow: most looks do not even try
        clock.now += 1.0
        feed.look()
        looks += 1
    assert looks == 1 + 2 + 4 + 8
    until_done(feed, clock)
    assert len({row.position for row in kept.rows}) == len(kept.rows) == 10
    assert read_cursor(tmp_path, "kept").trouble == ""


@pytest.mark.parametrize("seed", range(8))
def test_processes_that_end_at_any_moment_lose_and_repeat_nothing(tmp_path, seed):
    """The journal grows, the feed's process ends, and a new one goes on where it was."""
    chance = random.Random(seed)
    told = list(events(20))
    kept, clock, done = Kept(), Clock(), 0
    feed = Feed("kept", lambda: kept, tmp_path, None, clock)
    while done < len(told):
        more = chance.randrange(1, 5)
        write(tmp_path, told[done : done + more])
        done += more
        if chance.random() < 0.5:
            feed.look()
        if chance.random() < 0.5:
            feed = Feed("kept", lambda: kept, tmp_path, None, clock)
    until_done(feed, clock)
    maker = Rows()
    rows = [row for row in map(maker.of, told) if row is not None]
    assert [row.position for row in kept.rows] == [row.position for row in rows]


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path):
    write(tmp_path, events())
    kept, clock = Kept(), Clock()
    until_done(Feed("kept", lambda: kept, tmp_path, None, clock), clock)
    before = len(kept.rows)
    again = [journals.run_line(30.0, run_id="r1", resumed_step=6), journals.step(31.0, 7)]
    write(tmp_path, [*again, journals.end(32.0, 7)])
    feed = Feed("kept", lambda: kept, tmp_path, None, clock)
    until_done(feed, clock)
    assert [row.step for row in kept.rows[before:]] == [7]
    assert kept.opened[-1].step == 6
    assert len(kept.ends) == 2


def test_the_end_is_awaited_as_long_as_loggers_get_on(tmp_path):
    write(tmp_path, events())
    clock = Clock()

    def sleep(seconds):
        clock.now += seconds

    left = await_all(tmp_path, ["csv", "kept"], 21.0, clock, sleep)
    assert set(left) == {"csv", "kept"}
    assert 10 <= clock.now < 12
    kept = Kept()
    until_done(Feed("kept", lambda: kept, tmp_path, None, Clock()), Clock())
    until_done(Feed("csv", CSVLogger, tmp_path, None, Clock()), Clock())
    assert await_all(tmp_path, ["csv", "kept"], 21.0, clock, sleep) == {}


def in_file(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("cut", [1, 7, 40, 160])
def test_a_csv_file_has_each_value_once_wherever_its_writer_was_killed(tmp_path, cut):
    write(tmp_path, events())
    until_done(Feed("csv", CSVLogger, tmp_path, None, Clock()), Clock())
    path = tmp_path / "metrics.csv"
    expected = in_file(path)
    assert next(row["value"] for row in expected if row["name"] == "loss") == "2.0"
    assert {"nan"} == {row["value"] for row in expected if row["name"] == "odd"}
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])  # written, but neither all of it nor its cursor
    until_done(Feed("csv", CSVLogger, tmp_path, None, Clock()), Clock())
    assert in_file(path) == expected
    (tmp_path / "loggers" / "csv.json").unlink()  # the position is in the file itself
    until_done(Feed("csv", CSVLogger, tmp_path, None, Clock()), Clock())
    assert in_file(path) == expected


def test_loggers_are_made_by_name_from_a_fixed_table():
    made = make_logger(*parse_logger("wandb:project=x,mode=offline,tags=['a','b']"))
    assert (made.project, made.mode, made.tags) == ("x", "offline", ["a", "b"])
    assert make_logger(*parse_logger("csv")) == CSVLogger()
    with pytest.raises(LoggerError, match="no logger is called 'os:system'"):
        make_logger("os:system", {})
    with pytest.raises(LoggerError, match="csv has no setting fil; it has file"):
        make_logger(*parse_logger("csv:fil=x"))
    assert names_of([CSVLogger(), Kept(), CSVLogger(), CSVLogger()]) == [
        "csv",
        "kept",
        "csv-2",
        "csv-3",
    ]


def test_what_is_no_logger_is_refused_before_the_run(monkeypatch):
    check_loggers([Kept(), CSVLogger()])
    with pytest.raises(LoggerError, match="which has no open, write and close"):
        check_loggers(["csv"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(LoggerError, match=r"pip install 'raytrain-plus\[wandb\]'"):
        check_loggers([make_logger("wandb", {})])


def test_numbers_in_metrics_are_found_by_their_path():
    assert flat({"a": [1, {"b": 2.5}], "c": None, "d": True}, "x/") == {
        "x/a/0": 1.0, "x/a/1/b": 2.5, "x/d": 1.0,
    }  # fmt: skip


def test_a_journal_that_is_not_there_yet_is_waited_for(tmp_path):
    kept = Kept()
    feed = Feed("kept", lambda: kept, Path(tmp_path), None, Clock())
    assert not feed.look()
    assert not (tmp_path / FILE_NAME).exists()
    assert kept.opened == []
