"""The searcher, called as Ray Tune calls it: it loses no trial, and ends when it should."""

import math
import time

from ray.tune.search import Searcher

from raytrain_plus.frontier import searching
from raytrain_plus.frontier.agenda import Agenda
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.domain import Choice, Range
from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.frontier.points import FinishedTrial, Objective
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.searching import RecipeSearch, Sampler
from raytrain_plus.frontier.space import RecipeSpace
from raytrain_plus.task import Task

SWEEP = Sweep(
    name="small",
    task=Task(),
    space=RecipeSpace(
        baseline=Recipe(duration="100sp", batch_size=8, task={"learning_rate": 0.1}),
        aspects={"EMA": {}, "LabelSmoothing": {"smoothing": Range(low=0.01, high=0.2)}},
        task={"learning_rate": Range(low=0.01, high=1.0, log=True)},
        durations=("100sp", "200sp"),
    ),
    objective=Objective(metric="accuracy", mode="max"),
    seeds=(17,),
    calibrate_every=0,
    most_failures=3,
)


class Tune:
    """Requests trials from a searcher, and ends them."""

    def __init__(self, path, *, budget=1000.0, cost=1.0, **changes):
        changed = {**vars(SWEEP), **changes}
        sweep = Sweep(**changed)
        self.folder = SweepFolder(path)
        with self.folder.held():
            self.folder.write("session", sweep={}, workers=1, budget=budget)
        agenda = Agenda(
            space=sweep.space, seeds=sweep.seeds, promote=lambda _: (), calibrate_every=0
        )
        self.searcher = RecipeSearch(sweep, self.folder, agenda, budget, 1)
        self.cost = cost
        self.asked = 0

    def ask(self):
        self.asked += 1
        return str(self.asked), self.searcher.suggest(str(self.asked))

    def end(self, trial, config, *, error=""):
        now = time.time()
        self.folder.finish(
            FinishedTrial(
                name=config["name"],
                purpose=config["purpose"],
                outcome="failed" if error else "complete",
                recipe=Recipe.model_validate(config["recipe"]),
                seed=config["seed"],
                cost=self.cost,
                quality=math.nan if error else 0.5,
                started=now,
                ended=now + self.asked * 1e-3,
                error=error,
            )
        )
        self.searcher.on_trial_complete(trial, {})

    def run(self, trials, error=lambda _: ""):
        """Run trials one after another; returns their configs."""
        configs = []
        for _ in range(trials):
            trial, config = self.ask()
            if config == Searcher.FINISHED:
                break
            configs.append(config)
            self.end(trial, config, error=error(config))
        return configs

    @property
    def problem(self):
        return [e["text"] for e in self.folder.events() if e["event"] == "problem"]


def test_trials_come_until_nothing_is_left_to_try(tmp_path):
    tune = Tune(tmp_path, most_drawn=3)
    configs = tune.run(30)
    purposes = [config["purpose"] for config in configs]
    assert purposes[:2] == ["baseline", "baseline"]
    assert purposes.count("search") == 3
    assert tune.ask()[1] == Searcher.FINISHED
    assert [e for e in tune.folder.events() if e["event"] == "finished"]
    assert not tune.problem


def test_the_sampler_continues_at_the_next_duration_if_the_shortest_has_nothing_new(tmp_path):
    small = RecipeSpace(
        baseline=SWEEP.space.baseline,
        aspects={"EMA": {}},
        task={"learning_rate": Choice(values=(0.1, 0.2))},
        durations=("100sp", "200sp"),
    )
    tune = Tune(tmp_path, space=small)
    configs = tune.run(40)
    tried = {(c["recipe"]["duration"], repr(c["recipe"])) for c in configs}
    assert {duration: sum(d == duration for d, _ in tried) for duration in small.rungs} == {
        "100sp": 4,
        "200sp": 4,
    }
    assert tune.ask()[1] == Searcher.FINISHED


def medium_space():
    return RecipeSpace(
        baseline=SWEEP.space.baseline,
        aspects={"EMA": {}, "LabelSmoothing": {}},
        task={"learning_rate": Choice(values=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5))},
        durations=("100sp", "200sp"),
    )


def test_a_small_space_is_tried_completely(tmp_path):
    """The sampler proposes good recipes again; random draws find the rest."""
    tune = Tune(tmp_path, space=medium_space())
    configs = tune.run(60)
    assert len({repr(config["recipe"]) for config in configs}) == 2 * 4 * 6
    assert tune.ask()[1] == Searcher.FINISHED


def test_the_sampler_alone_does_not_try_the_whole_space(tmp_path, monkeypatch):
    """The negative control."""
    monkeypatch.setattr(searching, "_CHANCES", 0)
    configs = Tune(tmp_path, space=medium_space()).run(60)
    assert len({repr(config["recipe"]) for config in configs}) < 2 * 4 * 6


def test_interrupted_trials_are_proposed_again_and_ended_ones_are_not(tmp_path):
    before = Tune(tmp_path)
    first, second = before.ask(), before.ask()
    before.end(*first)
    after = Tune(tmp_path)  # the previous process was killed
    _, again = after.ask()
    assert again == second[1]
    assert again["name"] not in {after.ask()[1]["name"] for _ in range(3)}


def test_a_process_that_crashes_again_and_again_is_a_failed_trial(tmp_path):
    tune = Tune(tmp_path)
    tune.end(*tune.ask())
    tune.end(*tune.ask())
    names = set()
    for _ in range(2):
        trial, config = tune.ask()
        names.add(config["name"])
        tune.searcher.on_trial_complete(trial, error=True)
    assert len(names) == 1
    failed = [trial for trial in tune.folder.finished() if trial.outcome == "failed"]
    assert {trial.name for trial in failed} == names
    assert tune.ask()[1]["name"] not in names


def test_single_failures_do_not_stop_a_sweep_but_many_in_a_row_do(tmp_path):
    def fails(config):
        return "it raised" if config["recipe"]["algorithms"] else ""

    some = Tune(tmp_path / "some", most_drawn=6)
    assert any(fails(config) for config in some.run(30, fails))
    rest = Tune(tmp_path / "all", most_drawn=6)
    configs = rest.run(30, lambda config: "it raised" if config["purpose"] != "baseline" else "")
    assert len(configs) == 2 + 3
    assert rest.ask()[1] == Searcher.FINISHED
    assert "3 trials in a row failed, the last with: it raised" in rest.problem[0]


def test_a_baseline_that_fails_ends_the_sweep(tmp_path):
    tune = Tune(tmp_path)
    assert len(tune.run(30, lambda _: "it raised")) == 1
    assert "the baseline itself failed, at 100sp: it raised" in tune.problem[0]


def test_a_budget_too_small_for_the_baseline_is_reported_after_its_first_run(tmp_path):
    tune = Tune(tmp_path / "small", budget=2.0)  # 100 samples cost 1 s, so 200 cost 2 s
    assert len(tune.run(30)) == 1
    assert "too small for the baseline" in tune.problem[0]
    assert "100sp, 200sp" in tune.problem[0]
    enough = Tune(tmp_path / "enough", budget=100.0, most_drawn=0)
    assert len(enough.run(30)) == 2
    assert not enough.problem


def test_the_budget_ends_a_sweep(tmp_path, monkeypatch):
    tune = Tune(tmp_path, budget=100.0)
    tune.run(4)
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began + 99.9)
    assert tune.ask()[1] == Searcher.FINISHED
    assert not tune.problem


def test_the_sampler_draws_recipes_of_the_space_and_learns(tmp_path):
    sampler = Sampler(SWEEP, SWEEP.space.rungs[0], seed=1)
    tune = Tune(tmp_path, most_drawn=0)
    tune.run(5)
    for trial in tune.folder.finished():
        if trial.recipe.duration == "100sp":
            sampler.teach(trial)
    assert [t.values for t in sampler._study.trials] == [[1.0, 0.5]]
    for _ in range(20):
        ticket, recipe = sampler.draw()
        assert SWEEP.space.config(recipe)["duration"] == "100sp"
        sampler.tell(ticket, None)
