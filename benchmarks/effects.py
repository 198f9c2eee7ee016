"""The effect of each algorithm on both reference tasks, at equal cost and at equal quality.

Run as `python -m benchmarks.effects digits|text [--seeds N] [--processes P]`, or with `--collect`
or `--report`.

Each algorithm is added alone to the tuned baseline (of `recipes/*/baseline.yaml`), with settings
that are fair to its kind, and trained to the end at the reference duration with several seeds. The
baseline itself is trained at several durations. Between them its quality is interpolated over the
logarithm of its cost. This gives the baseline's quality at each algorithm's cost, and the
baseline's cost of each algorithm's quality. Cost is the CPU time of the process.

Every run is appended to `benchmarks/data/effects_<task>.jsonl`. At the end, or earlier with
`--collect`, all runs are written as Parquet. The benchmark continues from the runs in either file.
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import report
from benchmarks.baselines import REFERENCES
from benchmarks.one_process import train
from benchmarks.record import Record, Row
from raytrain_plus.frontier.recipe import Recipe, read_recipe

RECIPES = {"digits": "cluttered_digits", "text": "byte_gpt"}
_DURATIONS = (0.4, 0.7, 1.0, 1.5, 2.2)  # of the baseline's runs, in reference durations
BASELINE = "baseline"
FOUND = ("mild", "medium", "hot")

Algorithms = dict[str, dict[str, Any]]

ALONE: dict[str, dict[str, Algorithms]] = {
    "digits": {
        "BlurPool": {"BlurPool": {}},
        "ChannelsLast": {"ChannelsLast": {}},
        "LabelSmoothing": {"LabelSmoothing": {}},
        "MixUp": {"MixUp": {"alpha": 0.2}},
        "CutMix": {"CutMix": {}},
        "CutOut": {"CutOut": {}},
        "ColOut": {"ColOut": {}},
        "RandAugment": {"RandAugment": {"depth": 1, "severity": 5.0}},
        "AugMix": {"AugMix": {}},
        "ProgressiveResizing": {"ProgressiveResizing": {}},
        "SqueezeExcite": {"SqueezeExcite": {"min_channels": 32}},
        "StochasticDepth": {"StochasticDepth": {}},
        "GhostBatchNorm": {"GhostBatchNorm": {"size": 8}},
        "WeightStandardization": {"WeightStandardization": {}},
        "SelectiveBackprop": {"SelectiveBackprop": {}},
        "EMA": {"EMA": {"half_life": "0.02dur"}},
        "SWA": {"SWA": {"interval": "0.02dur"}},
        "SAM": {"SAM": {}},
        "GradientClipping": {"GradientClipping": {}},
        "LayerFreezing": {"LayerFreezing": {}},
        "Factorize": {"Factorize": {"min_features": 32}},
        "LowPrecision": {"LowPrecision": {}},
    },
    "text": {
        "ALiBi": {"ALiBi": {}},
        "SeqLengthWarmup": {"SeqLengthWarmup": {}},
        "AttentionConvolution": {"AttentionConvolution": {}},
        "SquaredReLU": {"SquaredReLU": {}},
        "NGramEmbeddings": {"NGramEmbeddings": {}},
        "GatedLinearUnits": {"GatedLinearUnits": {}},
        "LowPrecisionLayerNorm": {"LowPrecisionLayerNorm": {}},
        "SelectiveBackprop": {"SelectiveBackprop": {}},
        "EMA": {"EMA": {"half_life": "0.02dur"}},
        "SWA": {"SWA": {"interval": "0.02dur"}},
        "SAM": {"SAM": {"interval": 2}},
        "GradientClipping": {"GradientClipping": {}},
        "LayerFreezing": {"LayerFreezing": {}},
        "StochasticDepth": {"StochasticDepth": {}},
        "LowPrecision": {"LowPrecision": {}},
    },
}


def jobs(name: str, seeds: int) -> Iterator[tuple[str, Algorithms, int, int]]:
    """Yield (label, algorithms, samples, seed), seed by seed, so that an early end is fair."""
    reference = REFERENCES[name]
    for place, seed in enumerate(range(101, 101 + seeds)):
        # Three seeds are enough for the baseline's curve; algorithms are compared at all seeds.
        for factor in _DURATIONS if place < 3 else (1.0,):
            yield BASELINE, {}, int(reference.samples * factor), seed
        for recipe in FOUND:
            found = read_recipe(f"{RECIPES[name]}/{recipe}")
            yield recipe, dict(found.algorithms), int(found.duration.removesuffix("sp")), seed
        for label, algorithms in ALONE[name].items():
            yield label, algorithms, reference.samples, seed


def run(name: str, label: str, algorithms: Algorithms, samples: int, seed: int) -> Row:
    """Train once."""
    reference = REFERENCES[name]
    said = read_recipe(f"{RECIPES[name]}/{BASELINE if label in ALONE[name] else label}")
    recipe = Recipe(
        duration=f"{samples}sp",
        batch_size=said.batch_size,
        task=said.task,
        algorithms=algorithms,
    )
    row: Row = {"label": label, "samples": samples, "seed": seed}
    row["algorithms"] = json.dumps(algorithms, sort_keys=True)
    result = train(reference.task, recipe, seed=seed)
    advice = sum(cost["seconds"] for cost in result.costs.values())
    quality = result.metrics[reference.metric]
    return {**row, "quality": quality, "seconds": result.seconds, "advice_seconds": advice}


def sweep(name: str, seeds: int, processes: int) -> None:
    """Run the jobs that have not been run yet."""
    record = record_of(name)
    done = {_key(row) for row in record.rows()}
    todo = [
        job
        for job in jobs(name, seeds)
        if (job[0], json.dumps(job[1], sort_keys=True), *job[2:]) not in done
    ]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(partial(run, name, *job)) for job in todo]:
            record.append([future.result()])


def record_of(name: str) -> Record:
    """Return the record of a task's runs."""
    return Record(f"effects_{name}", _key)


def _key(row: Row) -> tuple[str, str, int, int]:
    return row["label"], row["algorithms"], row["samples"], row["seed"]


def compare(name: str, rows: Sequence[Row]) -> list[Row]:
    """Compare each algorithm with the baseline; a positive difference means that it is better."""
    reference = REFERENCES[name]
    seeds: dict[tuple[str, int], dict[int, Row]] = defaultdict(dict)
    wanted = {
        (label, json.dumps(algorithms, sort_keys=True)) for label, algorithms, *_ in jobs(name, 1)
    }
    for row in rows:
        if (row["label"], row["algorithms"]) not in wanted:
            continue  # an earlier trial with other settings
        seeds[row["label"], row["samples"]][row["seed"]] = row
    curve = sorted(
        (samples, _mean(found, "seconds"), _mean(found, "quality"))
        for (label, samples), found in seeds.items()
        if label == BASELINE
    )
    costs = np.log([point[1] for point in curve])
    signed = reference.sign * np.array([point[2] for point in curve])
    result = []
    for (label, samples), found in seeds.items():
        cost, quality = _mean(found, "seconds"), _mean(found, "quality")
        same_cost = [
            reference.sign * row["quality"] - float(np.interp(np.log(cost), costs, signed))
            for row in found.values()
        ]
        needed = float(
            np.exp(np.interp(reference.sign * quality, np.maximum.accumulate(signed), costs))
        )
        result.append(
            {
                "algorithm": label,
                "samples": samples,
                "seeds": len(found),
                reference.metric: round(quality, 4),
                "seconds": round(cost, 2),
                "gain at equal cost": round(statistics.mean(same_cost), 4),
                "+-": round(_half_interval(same_cost), 4),
                "speed-up at equal quality": round(needed / cost, 2),
                "advice s": round(_mean(found, "advice_seconds"), 2),
            }
        )
    return sorted(result, key=lambda row: (row["algorithm"] != BASELINE, row["algorithm"]))


_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # Student's t, 95 %


def _half_interval(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean; not a number for one value."""
    if len(values) < 2:
        return math.nan
    return _T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def _mean(found: dict[int, Row], key: str) -> float:
    return statistics.mean(row[key] for row in found.values())


def main() -> None:
    """Sweep and report."""
    parser = argparse.ArgumentParser(description="Effects of algorithms on a reference task")
    parser.add_argument("task", choices=REFERENCES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--collect", action="store_true", help="end early, with the runs so far")
    parser.add_argument("--report", action="store_true", help="only show what is recorded")
    options = parser.parse_args()
    record = record_of(options.task)
    if not (options.report or options.collect):
        sweep(options.task, options.seeds, options.processes)
    rows = pq.read_table(record.table).to_pylist() if options.report else record.collect()
    report.show(f"{options.task}, compared with the tuned baseline", compare(options.task, rows))


if __name__ == "__main__":
    main()
