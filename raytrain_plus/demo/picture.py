"""A picture of a disturbed run next to an undisturbed one."""

from pathlib import Path

from matplotlib.figure import Figure

from raytrain_plus.observe.journal import Event

_MARKS = {"kill": "red", "stop": "darkorange", "drain": "purple", "add": "green", "remove": "gray"}


def draw(disturbed: list[Event], undisturbed: list[Event], path: Path) -> None:
    """Draw the loss over steps of both runs, and the workers over time with the faults marked."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    losses, workers = figure.subplots(2, 1, height_ratios=[3, 2])
    for events, style in ((undisturbed, _UNDISTURBED), (disturbed, _DISTURBED)):
        steps = [e for e in events if e["event"] == "step"]
        losses.plot([e["step"] for e in steps], [e["loss"] for e in steps], **style)
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    losses.set_title("The same losses, bit for bit, whatever happens to the workers", loc="left")
    steps = [e for e in disturbed if e["event"] == "step"]
    zero = steps[0]["time"]
    times, counts = _workers_over_time(disturbed, zero)
    workers.step(times, counts, where="post", color="black", linewidth=1)
    workers.fill_between(times, counts, step="post", alpha=0.15, color="black")
    by_step = {e["step"]: e["time"] - zero for e in steps}
    for fault in [e for e in disturbed if e["event"] == "fault" and e["step"] > 0]:
        color, step = _MARKS[fault["action"]], fault["step"]
        at = by_step.get(step, 0.0)
        losses.axvline(step, color=color, linewidth=1, linestyle=":")
        workers.axvline(at, color=color, linewidth=1, linestyle=":")
        workers.annotate(
            fault["action"], (at, max(counts) + 0.3), color=color, ha="center", fontsize=9
        )
    workers.set(xlabel="seconds", ylabel="workers", ylim=(0, max(counts) + 0.8))
    workers.set_yticks(range(max(counts) + 1))
    losses.legend()
    figure.savefig(path, dpi=110)


def _workers_over_time(events: list[Event], zero: float) -> tuple[list[float], list[int]]:
    generations = [e for e in events if e["event"] == "generation"]
    times = [e["time"] - zero for e in generations]
    counts = [e["workers"] for e in generations]
    end = [e["time"] for e in events if e["event"] == "step"][-1] - zero
    return [*times, end], [*counts, counts[-1]]


_UNDISTURBED = {
    "color": "tab:blue",
    "linewidth": 4,
    "alpha": 0.35,
    "label": "undisturbed, 1 worker",
}
_DISTURBED = {"color": "black", "linewidth": 0.8, "label": "disturbed, 1 to 3 workers"}
