"""Progress without a terminal: a plain line every few seconds."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from raytrain_plus.observe.notebook import NotebookTable, is_in_notebook
from raytrain_plus.observe.progress import (
    INTERVAL_VARIABLE,
    ProgressLine,
    chosen_interval,
    duration,
    shown,
    summary_table,
)

RUN = {"event": "run", "batch_size": 16, "total_steps": 1000}
GENERATION = {"event": "generation", "generation": 1, "workers": 2}


def told(seconds, **console):
    """Return the output for a run that commits ten steps a second."""
    out = io.StringIO()
    now = [0.0]
    line = ProgressLine("a [bold]run", Console(file=out, **console), clock=lambda: now[0])
    with line:
        line([RUN, GENERATION])
        for step in range(1, 10 * seconds + 1):
            now[0] = step / 10
            line([{"event": "step", "step": step, "loss": 0.5, "time": 100 + step / 10}])
        line([{"event": "warning", "text": "a [red]warning[/red] of x"}])
    return out.getvalue()


def test_a_line_is_printed_every_few_seconds():
    lines = told(23).splitlines()
    assert len(lines) == 4 + 1
    assert lines[0].startswith("a [bold]run: step 50 of 1,000  loss 0.5000  ")
    assert "2 workers  generation 1" in lines[0]
    assert lines[3].startswith("a [bold]run: step 200 of 1,000")
    assert lines[-1] == "warning: a [red]warning[/red] of x"


def test_a_short_run_prints_no_progress_line():
    assert told(4).splitlines() == ["warning: a [red]warning[/red] of x"]


def test_on_a_terminal_one_line_changes_in_place():
    """The control: there is no line of the other kind."""
    assert "step 50 of" not in told(23, force_terminal=True, width=120)


class Shown:
    """A line of progress off a terminal, and its clock."""

    def __init__(self, **options):
        self.now = 0.0
        self.out = io.StringIO()
        console = Console(file=self.out)
        self.line = ProgressLine("mine", console, clock=lambda: self.now, **options)

    def at(self, now, *events):
        self.now = now
        self.line(list(events))

    def lines(self):
        return self.out.getvalue().splitlines()


def step(number, time):
    return {"event": "step", "step": number, "loss": 0.5, "time": time}


END = {"event": "end", "state": "finished", "step": 1000, "loss": 0.125, "metrics": {"f1": 0.75}}


def test_a_line_has_step_loss_speed_workers_and_the_time_left():
    run = Shown()
    run.at(0.0, RUN, GENERATION, *(step(i, i / 10) for i in range(1, 11)))
    run.at(6.0, *(step(i, i / 10) for i in range(11, 61)))
    assert run.lines() == [
        "mine: step 60 of 1,000  loss 0.5000  160 samples/s  2 workers  generation 1  2 min left"
    ]


def test_a_run_that_stands_says_so_at_growing_intervals():
    run = Shown()
    run.at(0.0, RUN)
    for now in range(1, 20):
        run.at(float(now))
    assert run.lines() == [
        "mine: waiting for workers for 5 s",
        "mine: waiting for workers for 15 s",
    ]
    run.at(21.0, GENERATION, step(1, 100.0))
    for now in range(22, 45):
        run.at(float(now))
    assert [line.partition(": ")[2][:22] for line in run.lines()[2:]] == [
        "step 1 of 1,000  loss ",
        "step 1 of 1,000  no ne",
        "step 1 of 1,000  no ne",
    ]
    run.at(45.0, END)
    run.at(300.0)
    assert len(run.lines()) == 5  # nothing after the end


def test_at_a_breakpoint_no_line_is_printed():
    run = Shown(says_stalls=False)
    run.at(0.0, RUN, GENERATION, step(1, 0.0))
    for now in range(1, 100):
        run.at(float(now))
    assert len(run.lines()) == 1


def test_the_interval_can_be_set_and_turned_off(monkeypatch):
    often, never = Shown(interval=1.0), Shown(interval=0.0, says_end=True)
    for run in (often, never):
        run.at(0.0, RUN, GENERATION)
        for now in range(1, 11):
            run.at(float(now), step(now, float(now)))
        run.at(11.0, END)
    assert (len(often.lines()), never.lines()) == (10, [])
    assert chosen_interval() == 5.0
    monkeypatch.setenv(INTERVAL_VARIABLE, "30")
    assert (chosen_interval(), chosen_interval(2.0)) == (30.0, 2.0)
    for wrong in ("often", "-1", "nan", "inf"):
        monkeypatch.setenv(INTERVAL_VARIABLE, wrong)
        with pytest.raises(ValueError, match=f"{INTERVAL_VARIABLE} is '{wrong}'; it must be"):
            chosen_interval()


def test_a_script_is_told_the_end(monkeypatch, capsys):
    monkeypatch.setenv(INTERVAL_VARIABLE, "100")
    with shown("mine", is_local=False) as line:
        line([RUN, GENERATION, step(1000, 1.0), END])
    told = "mine: finished after 1,000 of 1,000 steps  loss 0.1250  f1 0.7500\n"
    assert capsys.readouterr().err == told
    monkeypatch.setenv(INTERVAL_VARIABLE, "0")
    with shown("mine", is_local=False) as line:
        line([RUN, GENERATION, step(1000, 1.0), END])
    assert capsys.readouterr().err == ""


@pytest.fixture
def notebook(monkeypatch):
    cells = []

    def display(thing, *, display_id):
        assert display_id is True
        cells.append(thing._repr_html_())
        return SimpleNamespace(update=lambda thing: cells.append(thing._repr_html_()))

    shell = SimpleNamespace(kernel=object())
    ipython = SimpleNamespace(
        get_ipython=lambda: shell, display=SimpleNamespace(display=display), shell=shell
    )
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    return SimpleNamespace(cells=cells, shell=shell)


def test_a_notebook_shows_one_table_that_changes(notebook, capsys):
    with shown("<mine>", is_local=False) as table:
        assert isinstance(table, NotebookTable)
        table([RUN])
        warning = {"event": "warning", "text": "a <b>"}
        table([GENERATION, *(step(i, i / 10) for i in range(1, 501)), warning])
        table([{"event": "evaluate", "step": 500, "metrics": {"f1": 0.5}}, END])
    first, last = notebook.cells[0], notebook.cells[-1]
    assert "waiting for workers" in first
    assert "&lt;mine&gt;" in last
    for said in ("finished", "1,000 of 1,000", "0.5000", "f1", "2 (generation 1)", "a &lt;b&gt;"):
        assert said in last
    assert "state finished" in repr(table)
    assert capsys.readouterr().err == ""


def test_a_terminal_with_ipython_is_no_notebook(notebook):
    assert is_in_notebook()
    del notebook.shell.kernel
    assert not is_in_notebook()


def test_times_are_for_people():
    told = [duration(seconds) for seconds in (0, 59, 61, 3599, 3600, 7500)]
    assert told == ["0 s", "59 s", "1 min", "1 h 0 min", "1 h 0 min", "2 h 5 min"]


def summary(*generations, **more):
    """Return the table of a run with some generations: pause, cause."""
    out = io.StringIO()
    told = {
        "run": "mine", "state": "finished", "steps": 3, "loss": 0.5, "metrics": {},
        "generations": [
            {"generation": i, "step": i, "workers": 2, "causes": [cause], "pause_seconds": pause}
            for i, (pause, cause) in enumerate(generations)
        ],
        "device_seconds": 1.0, "wall_seconds": 1.0, "samples": {"trained": 1, "loaded": 1},
        "tokens": {"trained": 0, "loaded": 0}, "algorithms": {}, "bitwise": True, "digest": "",
        "folder": "here", **more,
    }  # fmt: skip
    Console(file=out, markup=False, width=200).print(summary_table({"mine": told}))
    return out.getvalue()


def test_the_longest_pause_is_shown_with_its_cause():
    lost, hung = {"kind": "lost", "worker": "w1"}, {"kind": "hung", "worker": "w2"}
    start = (0.0, {"kind": "start"})
    assert "5.304 s (w2 hung)" in summary(start, (0.25, lost), (5.304, hung))
    assert "w2 hung" not in summary(start, (0.25, lost), (0.1, hung))
    assert "none" in summary(start).partition("longest pause")[2].splitlines()[0]


def test_a_run_that_was_resumed_with_changes_says_so():
    assert "changed" not in summary()
    assert "seed: was 1, is 2" in summary(changes=["seed: was 1, is 2"])
