"""A small space of recipes for the digits, and the cost and quality of each of its recipes.

Run as `python -m benchmarks.recorded_space [--processes P]`. Each recipe is run once with each
seed, in a separate process; a run's cost is its CPU time. Every run is appended to
`benchmarks/data/digits_space.jsonl`, and at the end all are written as Parquet. Recorded runs are
not repeated. The searches of `benchmarks.searches` look their trials up here.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context

from benchmarks.baselines import REFERENCES
from benchmarks.one_process import train
from benchmarks.record import Record, Row
from raytrain_plus.frontier.domain import Choice
from raytrain_plus.frontier.points import Objective, key_of
from raytrain_plus.frontier.recipe import Recipe, read_recipe
from raytrain_plus.frontier.space import RecipeSpace

RECORD = Record("digits_space", lambda row: (row["recipe"], row["seed"]))
SEEDS = (17, 18)
OBJECTIVE = Objective(metric="accuracy", mode="max")
SPACE = RecipeSpace(
    baseline=read_recipe("cluttered_digits/baseline").model_copy(update={"duration": "24000sp"}),
    aspects={
        "BlurPool": {},
        "EMA": {"half_life": "0.02dur"},
        "LabelSmoothing": {"smoothing": 0.05},
        "ProgressiveResizing": {},
    },
    task={"learning_rate": Choice(values=(0.15, 0.06, 0.4))},
    durations=("6000sp", "12000sp", "24000sp"),
)

Known = Mapping[str, list[tuple[float, float]]]
"""The key of a recipe -> its cost in device-seconds and its quality, by seed."""


def recipes() -> Iterator[Recipe]:
    """Yield all recipes of the space."""
    domains = {key: domain for key, domain in SPACE.entries.items() if isinstance(domain, Choice)}
    for values in product(*(domain.values for domain in domains.values())):
        yield SPACE.recipe(dict(zip(domains, values, strict=True)))


def run(recipe: Recipe, seed: int) -> Row:
    """Train once."""
    result = train(REFERENCES["digits"].task, recipe, seed=seed)
    return {
        "recipe": json.dumps(recipe.model_dump(mode="json"), sort_keys=True),
        "seed": seed,
        "cost": result.seconds,
        "quality": float(result.metrics[OBJECTIVE.metric]),
    }


def known() -> Known:
    """Return the cost and the quality of each recipe.

    Raises:
        SystemExit: some recipes have not been recorded.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for row in RECORD.rows():
        key = key_of(Recipe.model_validate_json(row["recipe"]))
        found.setdefault(key, {})[row["seed"]] = row["cost"], row["quality"]
    missing = [r for r in recipes() if len(found.get(key_of(r), ())) < len(SEEDS)]
    if missing:
        raise SystemExit(f"{len(missing)} recipes are not recorded: {__doc__}")
    return {key: [of_seed[seed] for seed in SEEDS] for key, of_seed in found.items()}


def main() -> None:
    """Run and record the recipes that have not been recorded."""
    parser = argparse.ArgumentParser(description="Record a space of recipes")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    rows = RECORD.rows()
    done = {(key_of(Recipe.model_validate_json(row["recipe"])), row["seed"]) for row in rows}
    todo = [(r, s) for s in SEEDS for r in recipes() if (key_of(r), s) not in done]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(partial(run, *one)) for one in todo]:
            RECORD.append([future.result()])
    print(f"{len(RECORD.collect())} runs in {RECORD.table}")


if __name__ == "__main__":
    main()
