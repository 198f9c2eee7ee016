"""Writes the results of `benchmarks.effects` into the cards of the algorithms and into the log.

Run as `python -m benchmarks.cards`, after `python -m benchmarks.effects digits` and `text`.
"""

import re
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.baselines import REFERENCES
from benchmarks.effects import compare
from benchmarks.record import DATA, Row
from raytrain_plus.algorithms import ALGORITHMS

DOCS = Path(__file__).parents[1] / "docs"
_HEADING = "## Effect measured here\n"
_UNITS = {"digits": ("points of accuracy", 100), "text": ("bits per byte", 1)}
_TITLES = {"digits": "Cluttered digits, a small ResNet", "text": "Source code, a byte-level GPT"}
_BEGIN, _END = "<!-- effects -->", "<!-- /effects -->"


def sentence(task: str, row: Row) -> str:
    """Return a sentence about an algorithm's effect on a task."""
    unit, factor = _UNITS[task]
    gain, half = row["gain at equal cost"] * factor, row["+-"] * factor
    sure = "" if abs(gain) > half else " (no effect that these seeds show)"
    return (
        f"- {_TITLES[task]}: {gain:+.2f} +- {half:.2f} {unit} compared with the baseline at equal "
        f"cost{sure}; {row['speed-up at equal quality']:.2f} times as fast as the baseline to the "
        f"same quality. {row['seeds']} seeds, 95 % interval; `python -m benchmarks.effects {task}`."
    )


def table(task: str, rows: list[Row]) -> str:
    """Return a Markdown table of all rows, best first."""
    unit, factor = _UNITS[task]
    metric = REFERENCES[task].metric
    lines = [
        f"| | samples | {metric} | CPU s | gain, {unit} | +- | speed-up | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: -row["gain at equal cost"]):
        if row["algorithm"] == "baseline":
            continue
        lines.append(
            f"| {row['algorithm']} | {row['samples']:,} | {row[metric]:.4f} | {row['seconds']:.1f} "
            f"| {row['gain at equal cost'] * factor:+.2f} | {row['+-'] * factor:.2f} "
            f"| {row['speed-up at equal quality']:.2f} | {row['seeds']} |"
        )
    lines += [
        "",
        "The baseline itself, by duration:",
        "",
        f"| samples | {metric} | CPU s | seeds |",
    ]
    lines += ["| --- | --- | --- | --- |"]
    lines += [
        f"| {row['samples']:,} | {row[metric]:.4f} | {row['seconds']:.1f} | {row['seeds']} |"
        for row in sorted(rows, key=lambda row: row["samples"])
        if row["algorithm"] == "baseline"
    ]
    return "\n".join(lines)


def main() -> None:
    """Rewrite the cards and the log's tables."""
    found: dict[str, list[str]] = {name: [] for name in ALGORITHMS}
    log = (DOCS / "log.md").read_text()
    for task in REFERENCES:
        rows = compare(task, pq.read_table(DATA / f"effects_{task}.parquet").to_pylist())
        for row in rows:
            if row["algorithm"] in found:
                found[row["algorithm"]].append(sentence(task, row))
        begin, end = _BEGIN.replace("effects", task), _END.replace("effects", task)
        start, stop = log.index(begin) + len(begin), log.index(end)
        log = f"{log[:start]}\n{table(task, rows)}\n{log[stop:]}"
    (DOCS / "log.md").write_text(log)
    for name, sentences in found.items():
        card = DOCS / "algorithms" / f"{ALGORITHMS[name].__module__.rpartition('.')[2]}.md"
        text = card.read_text()
        if sentences:
            body = "\n".join(sentences)
            pattern = re.escape(_HEADING) + r".*?\n\n(?=## )"
            text = re.sub(pattern, f"{_HEADING}\n{body}\n\n", text, flags=re.DOTALL)
            card.write_text(text)


if __name__ == "__main__":
    main()
