"""Progress without a terminal: a plain line every few seconds."""

import io

from rich.console import Console

from raytrain_plus.observe.progress import ProgressLine, summary_table

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
