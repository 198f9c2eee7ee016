"""Keeps the results of a reference sweep: its trials as Parquet, and the picture of its report.

Run as `python -m benchmarks.sweeps FOLDER`, after `raytrain-plus sweep tune_recipes/NAME.py`; it
writes `benchmarks/data/sweep_NAME.parquet` and `docs/frontier_NAME.png`.
"""

import argparse
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.record import DATA
from raytrain_plus.cli import frontier
from raytrain_plus.frontier.folder import read_trials, to_table

_DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Copy the trials and the picture."""
    parser = argparse.ArgumentParser(description="Keep the results of a reference sweep")
    parser.add_argument("folder", type=Path, help="of the sweep")
    folder = parser.parse_args().folder
    trials = read_trials(folder / "trials")
    pq.write_table(to_table(trials), DATA / f"sweep_{folder.name}.parquet", compression="zstd")
    frontier.write(folder, folder / frontier.FOLDER)
    picture = folder / frontier.FOLDER / "frontier.png"
    shutil.copy(picture, _DOCS / f"frontier_{folder.name}.png")
    print(f"{len(trials)} trials of {folder.name}")


if __name__ == "__main__":
    main()
