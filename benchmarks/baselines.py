"""Tunes the baselines of the reference tasks, so that no recipe looks good against a weak baseline.

Run as `python -m benchmarks.baselines digits|text [--trials N] [--processes P]`.

Batch size, learning rate, schedule, warm-up and weight decay are drawn at random, and each trial is
a complete run at a short duration. The best quarter is run again at the reference duration with
three seeds, together with settings that the first results suggested (`_SUGGESTED`). All trials are
kept in `benchmarks/data/baselines_<task>.parquet`. The best quality for its cost is chosen: a
smaller batch reaches slightly more per sample, but also costs more per sample.
"""

import argparse
import math
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import report
from benchmarks.one_process import train
from benchmarks.record import DATA, Row
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.reference.byte_gpt import ByteGPT
from raytrain_plus.reference.cluttered_digits import ClutteredDigits
from raytrain_plus.task import Task


@dataclass(frozen=True)
class Reference:
    """A reference task in the searches.

    Attributes:
        task: the task.
        metric: the metric that counts.
        sign: 1 if larger values are better, -1 if smaller ones are.
        samples: the reference duration, in samples.
        draw: draws the task's settings and the batch size.
    """

    task: Task
    metric: str
    sign: int
    samples: int
    draw: Callable[[random.Random], tuple[Row, int]]


def _log_uniform(chance: random.Random, low: float, high: float) -> float:
    return float(f"{math.exp(chance.uniform(math.log(low), math.log(high))):.3g}")


def _digits(chance: random.Random) -> tuple[Row, int]:
    batch_size = chance.choice([32, 64, 128])
    return {
        "learning_rate": _log_uniform(chance, 0.02, 0.8) * batch_size / 64,
        "weight_decay": _log_uniform(chance, 1e-4, 1e-2),
        "schedule_name": chance.choice(["linear", "cosine"]),
        "warmup": chance.choice([0.05, 0.1, 0.2, 0.3]),
    }, batch_size


def _text(chance: random.Random) -> tuple[Row, int]:
    batch_size = chance.choice([8, 16, 32])
    return {
        "learning_rate": _log_uniform(chance, 1e-3, 2e-2),
        "weight_decay": _log_uniform(chance, 0.01, 0.5),
        "beta2": chance.choice([0.95, 0.98, 0.99]),
        "schedule_name": chance.choice(["linear", "cosine"]),
        "warmup": chance.choice([0.02, 0.05, 0.1, 0.2]),
    }, batch_size


# Twice the batch size of the first round's best settings, the others in proportion: as good, for
# three quarters of the cost.
_SUGGESTED: dict[str, list[tuple[Row, int]]] = {
    "digits": [
        (
            {
                "learning_rate": rate,
                "weight_decay": decay,
                "schedule_name": "linear",
                "warmup": warmup,
            },
            64,
        )
        for rate, decay, warmup in (
            (0.068, 0.00428, 0.1),
            (0.15, 0.0025, 0.2),
            (0.3, 0.001, 0.3),
        )
    ],
    "text": [],
}

REFERENCES = {
    "digits": Reference(ClutteredDigits(), "accuracy", 1, 48_000, _digits),
    "text": Reference(ByteGPT(), "bits_per_byte", -1, 8_000, _text),
}


def trial(name: str, samples: int, settings: Row, batch_size: int, seed: int) -> Row:
    """Train once; returns the settings and the results."""
    reference = REFERENCES[name]
    recipe = Recipe(duration=f"{samples}sp", batch_size=batch_size, task=settings)
    row = {"samples": samples, "seed": seed, "batch_size": batch_size, **settings}
    try:
        result = train(reference.task, recipe, seed=seed)
    except ArithmeticError:  # it diverged; this is a result, too
        return {**row, "quality": math.nan, "seconds": math.nan}
    return {**row, "quality": result.metrics[reference.metric], "seconds": result.seconds}


def run_all(jobs: Sequence[Callable[[], Row]], processes: int) -> list[Row]:
    """Run jobs in several processes; prints each row when it is there."""
    rows = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(job) for job in jobs]:
            rows.append(future.result())
            print(rows[-1], flush=True)
    return rows


def _rank(reference: Reference, row: Row) -> float:
    return -math.inf if math.isnan(row["quality"]) else reference.sign * row["quality"]


def main() -> None:
    """Search, and print the best settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=REFERENCES)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    reference = REFERENCES[options.task]
    chance = random.Random(options.seed)
    drawn = [reference.draw(chance) for _ in range(options.trials)]
    short = [partial(trial, options.task, reference.samples // 2, *d, 17) for d in drawn]
    rows = run_all(short, options.processes)
    order = sorted(range(len(rows)), key=lambda i: _rank(reference, rows[i]), reverse=True)
    best = [drawn[i] for i in order[: max(1, options.trials // 4)]] + _SUGGESTED[options.task]
    seeds = (17, 18, 19)
    long = [partial(trial, options.task, reference.samples, *d, s) for d in best for s in seeds]
    finals = run_all(long, options.processes)
    DATA.mkdir(exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist([*rows, *finals]), DATA / f"baselines_{options.task}.parquet"
    )
    summary = []
    for place in range(len(best)):
        three = finals[place * len(seeds) : (place + 1) * len(seeds)]
        mean = sum(row["quality"] for row in three) / len(three)
        cost = sum(row["seconds"] for row in three) / len(three)
        kept = {k: v for k, v in three[0].items() if k not in ("seed", "quality", "seconds")}
        summary.append({"quality": round(mean, 4), "seconds": round(cost, 2), **kept})
    summary.sort(key=lambda row: reference.sign * row["quality"], reverse=True)
    report.show("the best, over three seeds", summary)


if __name__ == "__main__":
    main()
