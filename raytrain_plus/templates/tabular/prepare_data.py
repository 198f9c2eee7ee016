"""Write data/train.parquet and data/evaluation.parquet from a table.

    python prepare_data.py                    a small sample: 5,000 made-up customers
    python prepare_data.py MINE.csv TARGET    your own CSV file, and its column to predict

Numbers are scaled to mean 0 and deviation 1. Each text becomes the number of its category; a text
that the training rows do not have becomes category 0. A missing number becomes the mean.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

DATA = Path(__file__).parent / "data"
SAMPLE = Path(__file__).parent / "sample.csv"


def write_sample(path=SAMPLE, rows=5000, seed=0):
    """Write made-up customers, of whom some leave."""
    draw = np.random.default_rng(seed)
    plans, regions = ["basic", "plus", "pro"], ["east", "north", "south", "west"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "visits", "balance", "plan", "region", "leaves"])
        for _ in range(rows):
            age, visits = draw.integers(18, 80), draw.poisson(6)
            balance = round(float(draw.normal(500, 300)), 2)
            plan, region = int(draw.integers(3)), int(draw.integers(4))
            tends = 0.5 * (6 - visits) + 0.9 * (1 - plan) - balance / 400 + (region == 2)
            leaves = draw.random() < 1 / (1 + np.exp(-1.5 * tends))
            values = [age, visits, balance, plans[plan], regions[region]]
            writer.writerow([*values, "yes" if leaves else "no"])


def prepare(path, target, seed=0):
    """Return the training table, the evaluation table, and the task's settings."""
    table = pyarrow.csv.read_csv(path)
    if target not in table.column_names:
        raise SystemExit(f"{path} has no column {target!r}; it has {', '.join(table.column_names)}")
    mixed = np.random.default_rng(seed).permutation(table.num_rows)
    table = table.take(mixed)
    train = np.arange(table.num_rows) >= table.num_rows // 5  # the first fifth is held out
    inputs = [name for name in table.column_names if name != target]
    texts = [name for name in inputs if pa.types.is_string(table.schema.field(name).type)]
    numbers = [scaled(table[name], train) for name in inputs if name not in texts]
    known = [coded(table[name], train) for name in texts]
    labels = sorted(set(map(str, table[target].to_pylist())))
    label = [labels.index(str(value)) for value in table[target].to_pylist()]
    columns = {"label": pa.array(label, pa.int64())}
    if numbers:
        columns["numbers"] = rows_of(numbers, np.float32)
    if known:
        columns["categories"] = rows_of([codes for codes, _ in known], np.int64)
    made = pa.table(columns)
    settings = {
        "numbers": len(numbers),
        "categories": [size for _, size in known],
        "classes": len(labels),
    }
    return made.filter(train), made.filter(~train), settings


def scaled(column, train):
    values = column.cast(pa.float64()).to_numpy()
    mean, deviation = np.nanmean(values[train]), np.nanstd(values[train])
    return np.nan_to_num((values - mean) / (deviation or 1.0))


def coded(column, train):
    """Return a number for each text, and how many there are; 0 is for all that are not known."""
    values = column.to_pylist()
    names = sorted({str(value) for value, known in zip(values, train, strict=True) if known})
    numbers = {name: number for number, name in enumerate(names, 1)}
    return np.array([numbers.get(str(value), 0) for value in values]), len(names) + 1


def rows_of(columns, kind):
    flat = np.stack(columns, axis=1).astype(kind)
    return pa.FixedSizeListArray.from_arrays(flat.reshape(-1), len(columns))


def main(path=None, target="leaves"):
    if path is None:
        path = SAMPLE
        write_sample(path)
    train, evaluation, settings = prepare(path, target)
    DATA.mkdir(exist_ok=True)
    pq.write_table(train, DATA / "train.parquet")
    pq.write_table(evaluation, DATA / "evaluation.parquet")
    print(f"wrote {DATA}: {train.num_rows} rows to train, {evaluation.num_rows} to evaluate")
    told = ", ".join(f"{name}: {value}" for name, value in settings.items())
    print(f"run.yaml must say: task_settings: {{{told}}}")


if __name__ == "__main__":
    main(*sys.argv[1:])
