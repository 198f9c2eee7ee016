"""The runs of `benchmarks.effects` as the trials of a sweep, for `raytrain-plus frontier`.

    python -m benchmarks.effects_trials digits digits.parquet
    raytrain-plus frontier digits.parquet --metric accuracy \
        --task raytrain_plus.reference.cluttered_digits:ClutteredDigits

The runs have no times, so they get consecutive times in the order of their records.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.baselines import REFERENCES
from benchmarks.effects import BASELINE, FOUND, RECIPES
from benchmarks.record import DATA, Row
from raytrain_plus.frontier.folder import write_trials
from raytrain_plus.frontier.points import FinishedTrial
from raytrain_plus.frontier.recipe import Recipe, read_recipe


def trials(name: str, rows: Sequence[Row]) -> list[FinishedTrial]:
    """Return the runs of one task as trials, without calibrations."""
    found: list[FinishedTrial] = []
    clock = 0.0
    for number, row in enumerate(rows):
        label = row["label"]
        said = read_recipe(f"{RECIPES[name]}/{label if label in FOUND else BASELINE}")
        algorithms = json.loads(row["algorithms"])
        advice = {label: row["advice_seconds"]} if len(algorithms) == 1 else {}
        found.append(
            FinishedTrial(
                name=f"{number:05d}-{label}",
                purpose="baseline" if label == BASELINE else "alone",
                recipe=Recipe(
                    duration=f"{row['samples']}sp",
                    batch_size=said.batch_size,
                    task=said.task,
                    algorithms=algorithms,
                ),
                seed=row["seed"],
                cost=row["seconds"],
                quality=row["quality"],
                started=clock,
                ended=clock + row["seconds"],
                aspect_costs=advice,
            )
        )
        clock = found[-1].ended
    return found


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(REFERENCES))
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    rows = pq.read_table(DATA / f"effects_{given.task}.parquet").to_pylist()
    write_trials(trials(given.task, rows), given.file)


if __name__ == "__main__":
    main()
