"""Progress where there is no terminal: a plain line now and then."""

import io

from rich.console import Console

from raytrain_plus.observe.progress import ProgressLine

RUN = {"event": "run", "batch_size": 16, "total_steps": 1000}
GENERATION = {"event": "generation", "generation": 1, "workers": 2}


def told(seconds, **console):
    """Return what is printed of a run that commits ten steps a second."""
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


def test_a_short_run_prints_none():
    assert told(4).splitlines() == ["warning: a [red]warning[/red] of x"]


def test_on_a_terminal_one_line_changes_in_place():
    """The control: no line of the other kind is there."""
    assert "step 50 of" not in told(23, force_terminal=True, width=120)
