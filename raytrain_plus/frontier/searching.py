"""The sweep's searcher: Ray Tune asks it for the next trial.

All its knowledge is in the sweep's folder. A proposal is written there before Tune gets it, and a
trial before Tune learns that it has ended. So after a kill it goes on without any state of Tune.
"""

import itertools
import math
import time
from collections import Counter
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raytrain_plus.frontier.agenda import (
    CALIBRATION,
    SEARCH,
    Agenda,
    Proposal,
    SweepBudget,
    rate_of,
)
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.folder import SweepFolder
from raytrain_plus.frontier.points import FinishedTrial, key_of
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.tune_space import optuna_space

_DRAWS = 20  # draws of the sampler to find a new recipe
_CHANCES = 1000  # further random draws, after which a duration counts as exhausted
_CRASHES = 2  # of a trial's process, after which the trial counts as failed
_MOST_OVERHEAD = 10.0


class Sampler:
    """Optuna's multi-objective sampler, as Ray Tune wraps it, at one duration.

    Args:
        sweep: the sweep.
        duration: duration of all recipes that are drawn.
        seed: seed of the draws.
        learns: whether it draws by the results that it got; otherwise at random.
    """

    def __init__(self, sweep: Sweep, duration: str, seed: int, *, learns: bool = True) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = sweep.space
        self._define = optuna_space(sweep.space, {"duration": duration})
        storage = optuna.storages.InMemoryStorage()
        self._search = OptunaSearch(
            space=self._define,
            metric=["cost", "quality"],
            mode=["min", sweep.objective.mode],
            storage=storage,
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            if learns
            else optuna.samplers.RandomSampler(seed=seed),
        )
        self._study = optuna.load_study(study_name="optuna", storage=storage)
        self._numbers = itertools.count()

    def draw(self) -> tuple[str, Recipe]:
        """Return a recipe, and the identifier to report its result with."""
        ticket = str(next(self._numbers))
        return ticket, self._space.recipe(self._search.suggest(ticket))

    def tell(self, ticket: str, trial: FinishedTrial | None) -> None:
        """Report the result of a drawn recipe; None if it was not run."""
        if trial is None or trial.outcome != "complete":
            self._search.on_trial_complete(ticket, error=True)
        else:
            values = {"cost": trial.cost, "quality": trial.quality}
            self._search.on_trial_complete(ticket, result=values)

    def teach(self, trial: FinishedTrial) -> None:
        """Report a complete trial that was not drawn here."""
        self._study.enqueue_trial(self._space.config(trial.recipe))
        asked = self._study.ask()
        self._define(asked)
        self._study.tell(asked, [trial.cost, trial.quality])


class RecipeSearch(Searcher):  # type: ignore[misc]
    """See the docstring of this module.

    Args:
        sweep: the sweep.
        folder: of the sweep.
        agenda: the order of its trials.
        budget: seconds of the whole pool's time, over all sessions.
        workers: number of workers in the pool.
    """

    def __init__(
        self, sweep: Sweep, folder: SweepFolder, agenda: Agenda, budget: float, workers: int
    ) -> None:
        super().__init__()
        self._sweep = sweep
        self._folder = folder
        self._agenda = agenda
        self._budget = budget
        self._workers = workers
        self._before = folder.spent()
        self._began = time.time()
        self._proposals = folder.proposals()
        self._live: dict[str, str] = {}
        self._crashes: Counter[str] = Counter()
        self._samplers: dict[str, Sampler] = {}  # made on first use: Tune pickles us before
        self._chance: dict[str, Sampler] = {}
        self._exhausted: set[str] = set()
        self._taught: set[str] = set()
        self._drawn: tuple[str, Recipe] | None = None
        self._tickets: dict[str, str] = {}
        self._over = False

    # -- what Tune asks

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        """Ignore Tune's metric: the sweep has its own cost and quality."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config, None for nothing now, or FINISHED at the end."""
        if self._over:
            return Searcher.FINISHED
        finished = self._folder.finished()
        problem = self._problem(finished)
        if problem:
            return self._end("problem", text=problem)
        found = self._cut_off(finished) or self._new(finished)
        if found is not None:
            self._live[trial_id] = found[0]
            name, proposal = found
            return {
                "name": name,
                "purpose": proposal.purpose,
                "recipe": proposal.recipe.model_dump(mode="json"),
                "seed": proposal.seed,
            }
        return None if self._live else self._end("finished")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Handle the end of a trial; its record says how it ended."""
        del result
        name = self._live.pop(trial_id, None)
        if name is None or not error or any(t.name == name for t in self._folder.finished()):
            return
        self._crashes[name] += 1  # it is proposed again
        if self._crashes[name] >= _CRASHES:
            proposal, now = self._proposals[name], time.time()
            self._folder.finish(
                FinishedTrial(
                    name=name,
                    purpose=proposal.purpose,
                    outcome="failed",
                    recipe=proposal.recipe,
                    seed=proposal.seed,
                    cost=0.0,
                    started=now,
                    ended=now,
                    error=f"its process ended {_CRASHES} times",
                )
            )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore results before the end of a run."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: all state is in the sweep's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, likewise."""

    def _end(self, event: str, **fields: Any) -> str:
        self._over = True
        self._folder.write(event, **fields)
        finished: str = Searcher.FINISHED
        return finished

    # -- what is to be run

    def _cut_off(self, finished: list[FinishedTrial]) -> tuple[str, Proposal] | None:
        """Return a trial that was begun, does not run now, and has not ended."""
        done = {trial.name for trial in finished} | set(self._live.values())
        return next(((n, p) for n, p in self._proposals.items() if n not in done), None)

    def _new(self, finished: list[FinishedTrial]) -> tuple[str, Proposal] | None:
        pending = [self._proposals[name] for name in self._live.values()]
        rate = rate_of(finished)
        spending = self._spending(finished, pending, rate)
        proposal = self._agenda.next(
            finished,
            pending,
            lambda: self._draw(finished, pending),
            lambda recipe: spending.fits(recipe, [p.recipe for p in pending], rate),
        )
        if proposal is None:
            return None
        name = self._folder.propose(proposal, tuple(self._proposals))
        self._proposals[name] = proposal
        if proposal.purpose == SEARCH and self._drawn is not None:
            self._tickets[name] = self._drawn[0]
            self._drawn = None
        return name, proposal

    def _spending(
        self, finished: list[FinishedTrial], pending: list[Proposal], rate: float | None
    ) -> SweepBudget:
        spent = self._before + time.time() - self._began
        plain = SweepBudget(budget=self._budget, spent=spent, workers=self._workers)
        if rate is None:
            return plain
        half_done = plain.seconds([p.recipe for p in pending], rate) / 2
        paid = sum(trial.cost for trial in finished) / self._workers + half_done
        overhead = min(max(1.0, spent / paid), _MOST_OVERHEAD) if paid else 1.0
        return SweepBudget(
            budget=self._budget, spent=spent, workers=self._workers, overhead=overhead
        )

    def _draw(self, finished: list[FinishedTrial], pending: list[Proposal]) -> Recipe | None:
        most = self._sweep.most_drawn
        drawn = sum(p.purpose == SEARCH for p in self._proposals.values())
        if most is not None and drawn >= most:
            return None
        known = {(key_of(t.recipe), t.seed) for t in finished} | {p.key for p in pending}
        for duration in self._sweep.space.rungs:
            if duration not in self._exhausted:
                found = self._drawn_at(duration, finished, known)
                if found is not None:
                    return found
                self._exhausted.add(duration)  # the next duration has more
        return None

    def _drawn_at(
        self, duration: str, finished: list[FinishedTrial], known: set[tuple[str, int]]
    ) -> Recipe | None:
        """Return a recipe of a duration that has not been tried, if one is found.

        If the space is small, the sampler soon proposes only known recipes, so random ones follow.
        """
        seed = self._sweep.seeds[0]
        if duration not in self._samplers:
            self._samplers[duration] = Sampler(self._sweep, duration, seed)
        sampler = self._samplers[duration]
        self._teach(sampler, duration, finished)
        for _ in range(_DRAWS):
            if self._drawn is None:
                self._drawn = sampler.draw()
            ticket, recipe = self._drawn
            if (key_of(recipe), seed) not in known:
                return recipe
            sampler.tell(ticket, None)
            self._drawn = None
        if duration not in self._chance:
            self._chance[duration] = Sampler(self._sweep, duration, seed, learns=False)
        for _ in range(_CHANCES):
            ticket, recipe = self._chance[duration].draw()
            self._chance[duration].tell(ticket, None)
            if (key_of(recipe), seed) not in known:
                return recipe
        return None

    def _teach(self, sampler: Sampler, duration: str, finished: list[FinishedTrial]) -> None:
        for trial in finished:
            if trial.recipe.duration != duration or trial.name in self._taught:
                continue
            self._taught.add(trial.name)
            if trial.name in self._tickets:
                sampler.tell(self._tickets.pop(trial.name), trial)
            elif trial.outcome == "complete" and trial.purpose != CALIBRATION:
                sampler.teach(trial)

    # -- what must not go on

    def _problem(self, finished: list[FinishedTrial]) -> str:
        failed = [trial for trial in finished if trial.outcome == "failed"]
        baselines = [trial for trial in failed if trial.purpose == "baseline"]
        if baselines:
            return f"the baseline itself failed, at {baselines[0].recipe.duration}: " + (
                baselines[0].error
            )
        last = finished[-self._sweep.most_failures :]
        in_a_row = all(trial.outcome == "failed" for trial in last)
        if len(last) == self._sweep.most_failures and in_a_row:
            return f"{len(last)} trials in a row failed, the last with: {last[-1].error}"
        return self._too_small(finished)

    def _too_small(self, finished: list[FinishedTrial]) -> str:
        """Return an error message if the baseline alone would take longer than the budget."""
        rate = rate_of(finished)
        space = self._sweep.space
        missing = [
            space.recipe_with((), duration)
            for duration in space.rungs
            if not any(t.purpose == "baseline" and t.recipe.duration == duration for t in finished)
        ]
        if rate is None or not missing:
            return ""
        spending = self._spending(finished, [], rate)
        needed = spending.spent + spending.seconds(missing, rate)
        if needed <= self._budget or not math.isfinite(needed):
            return ""
        return (
            f"the budget of {self._budget:.0f} s is too small for the baseline alone, which takes "
            f"about {needed:.0f} s at {', '.join(space.rungs)}: raise the budget, or leave out the "
            "longest duration"
        )
