"""A made-up sweep with known effects, synergies, noise and drift."""

import math
import random
from dataclasses import dataclass, field, replace
from itertools import combinations

from raytrain_plus.frontier.folder import record
from raytrain_plus.frontier.points import FinishedTrial, Objective
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.report.results import SweepResults
from raytrain_plus.observe.events import VERSION
from raytrain_plus.observe.journal import line_of

BEGAN = 1.7e9
METRIC = "accuracy"


@dataclass(frozen=True, kw_only=True)
class World:
    """The true effects.

    Attributes:
        effects: aspect -> (its gain in quality, its factor on cost).
        synergies: pair -> the gain in quality of both beyond the sum of their gains.
        noise: standard deviation of quality over seeds.
        cost_noise: standard deviation of the logarithm of cost.
        drift: how much the machine slows down over the sweep; 0.2 is a fifth.
        less_is_better: whether the metric is a loss.
    """

    effects: dict = field(
        default_factory=lambda: {
            "BlurPool": (0.010, 1.05),
            "EMA": (0.012, 1.02),
            "LabelSmoothing": (0.006, 1.0),
            "ProgressiveResizing": (-0.002, 0.7),
            "SAM": (-0.015, 1.9),
        }
    )
    synergies: dict = field(default_factory=lambda: {("BlurPool", "ProgressiveResizing"): 0.012})
    noise: float = 0.002
    cost_noise: float = 0.01
    drift: float = 0.0
    less_is_better: bool = False
    seed: int = 1

    @property
    def objective(self):
        return Objective(metric=METRIC, mode="min" if self.less_is_better else "max")

    def quality(self, on, samples):
        """Return the quality without noise: five points for each doubling of the duration."""
        told = 0.80 + 0.03 * math.log2(samples / 12000)
        told += sum(self.effects[name][0] for name in on)
        told += sum(self.synergies.get(pair, 0) for pair in combinations(sorted(on), 2))
        return 1 - told if self.less_is_better else told

    def cost(self, on, samples):
        """Return the device-seconds without noise and drift."""
        return samples / 1000 * math.prod(self.effects[name][1] for name in on)


def proposal(name):
    """Return a journal's line about a proposed trial."""
    return {"event": "proposal", "name": name, "purpose": "explore", "recipe": {}, "seed": 17}


class Sweep:
    """Writes trials one after another."""

    def __init__(self, world):
        self.world = world
        self.trials = []
        self.clock = BEGAN
        self._chance = random.Random(world.seed)

    def run(self, on=(), samples=48000, seed=17, purpose="search", outcome="complete", **task):
        """Run one trial; a bad learning rate lowers the quality."""
        world, drawn = self.world, self._chance.gauss
        recipe = Recipe(
            duration=f"{samples}sp",
            batch_size=64,
            task={"learning_rate": 0.1, **task},
            algorithms={name: {} for name in on},
        )
        # The effect of a seed on all recipes, and its effect on this one.
        common = random.Random(seed).gauss(0, world.noise)
        quality = world.quality(on, samples) + common + drawn(0, world.noise / 2)
        quality -= world.objective.sign * 0.05 * abs(math.log(recipe.task["learning_rate"] / 0.1))
        slow = 1 + world.drift * len(self.trials) / 100
        cost = world.cost(on, samples) * math.exp(drawn(0, world.cost_noise)) * slow
        trial = FinishedTrial(
            name=f"{len(self.trials):05d}-{purpose}",
            purpose=purpose,
            recipe=recipe,
            seed=seed,
            cost=cost,
            quality=quality,
            started=self.clock,
            ended=self.clock + cost,
            aspect_costs=dict.fromkeys(on, 0.02 * cost),
        )
        if outcome != "complete":
            why = "ValueError: <no> such image" if outcome == "failed" else "its loss is nan"
            trial = replace(
                trial, outcome=outcome, quality=math.nan, cost=cost / 3, error=why,
                ended=self.clock + cost / 3,
            )  # fmt: skip
        self.trials.append(trial)
        self.clock = trial.ended
        return trial

    def results(self, **known):
        """Return the sweep as the report reads it."""
        said = {"name": "synthetic", "task": "tasks:Synthetic", "logical_ranks": 4, "workers": 2}
        told = {**said, "objective": self.world.objective, "trials": self.trials}
        return SweepResults(**{**told, **known})

    def write(self, folder, *ends, task="tasks:Synthetic", under_way=0):
        """Write the sweep's folder; `ends` are the last events of its journal."""
        for trial in self.trials:
            record(trial, folder / "trials")
        said = {"name": "synthetic", "task": task, "logical_ranks": 4}
        said |= {"metric": METRIC, "mode": self.world.objective.mode}
        events = [
            {"event": "session", "time": BEGAN, "version": VERSION, "sweep": said, "workers": 2}
            | {"budget": 3600},
            *(proposal(trial.name) for trial in self.trials),
            *(proposal(f"live-{i}") for i in range(under_way)),
            *({"event": event, "time": self.clock, "text": "no more"} for event in ends),
        ]
        (folder / "sweep").mkdir(parents=True)
        lines = b"".join(map(line_of, events))
        (folder / "sweep" / "journal.jsonl").write_bytes(lines)
        (folder / "sweep" / "lock").touch()
        return folder


def baseline_alone(world, durations=(12000, 24000, 48000), seeds=range(17, 22)):
    sweep = Sweep(world)
    for samples in durations:
        for seed in seeds:
            sweep.run(samples=samples, seed=seed, purpose="baseline")
    return sweep


def whole(world=None, seeds=range(17, 22)):
    """Return a sweep as the engine makes it: baseline, tuning, factorial, search, promotion."""
    sweep = baseline_alone(world or World(), seeds=seeds)
    names = sorted(sweep.world.effects)
    for rate in (0.02, 0.05, 0.2, 0.5):
        for samples in (12000, 24000, 48000):
            sweep.run(samples=samples, purpose="tuning", learning_rate=rate)
    for on in [on for size in (1, 2) for on in combinations(names, size)]:
        _with_all(sweep, on, 24000, "factorial", seeds)
        sweep.run(samples=12000, purpose="calibration")
    chance = random.Random(5)
    for _ in range(30):
        on = [name for name in names if chance.random() < 0.4]
        sweep.run(on, samples=12000, learning_rate=0.1 * 5 ** chance.uniform(-1, 1))
    for on in (("BlurPool", "EMA", "ProgressiveResizing"), ("BlurPool", "EMA")):
        if set(on) <= set(names):
            _with_all(sweep, on, 48000, "promotion", seeds)
    for _ in range(3):
        sweep.run(names[-1:], purpose="search", outcome="dominated")
    for _ in range(2):
        sweep.run(names[:1], purpose="search", outcome="failed")
    return sweep


def _with_all(sweep, on, samples, purpose, seeds):
    for seed in seeds:
        sweep.run(on, samples=samples, seed=seed, purpose=purpose)
