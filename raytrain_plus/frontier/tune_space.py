"""Converts the space to the search spaces of Ray Tune and Optuna."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from raytrain_plus.frontier.domain import Choice, Domain
from raytrain_plus.frontier.space import Config, RecipeSpace, SpaceError

Fixed = Mapping[str, Any]
"""Entries of a config that are not searched, such as `{"duration": "12000sp"}`."""


class Trial(Protocol):
    """The part of an `optuna.Trial` that is used here."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Choose one of some values."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Choose a whole number, ends included."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number, ends included."""


def tune_space(space: RecipeSpace, fixed: Fixed | None = None) -> Config:
    """Return a search space for Ray Tune's `param_space`.

    It is flat, so settings of aspects that are off are drawn as well; `space.recipe` ignores them.

    Args:
        space: the space.
        fixed: values of entries that are not searched. Default none.

    Raises:
        SpaceError: a fixed value is outside of the space.
    """
    from ray import tune  # noqa: PLC0415 - seconds, and only a sweep needs it

    def searched(domain: Domain) -> Any:
        if isinstance(domain, Choice):
            return tune.choice(list(domain.values))
        low, high = domain.low, domain.high
        if domain.whole:  # Tune leaves the upper end out
            return (tune.lograndint if domain.log else tune.randint)(low, high + 1)
        return (tune.loguniform if domain.log else tune.uniform)(low, high)

    held = _held(space, fixed)
    return held | {key: searched(d) for key, d in space.entries.items() if key not in held}


def optuna_space(space: RecipeSpace, fixed: Fixed | None = None) -> Callable[[Trial], Config]:
    """Return a define-by-run space, for `OptunaSearch(space=...)` or an Optuna study.

    A setting of an aspect is suggested only where the aspect is on.

    Args:
        space: the space.
        fixed: values of entries that are not searched. Default none.

    Returns:
        A function from a trial to the whole config.

    Raises:
        SpaceError: a fixed value is outside of the space.
    """
    held = _held(space, fixed)

    def suggest(trial: Trial, key: str, domain: Domain) -> Any:
        if isinstance(domain, Choice):
            return trial.suggest_categorical(key, domain.values)
        ask = trial.suggest_int if domain.whole else trial.suggest_float
        return ask(key, domain.low, domain.high, log=domain.log)  # type: ignore[arg-type]

    def define(trial: Trial) -> Config:
        config = dict(held)
        always = {k: d for k, d in space.entries.items() if k not in space.settings}
        for key, domain in (always | space.settings_of("task")).items():
            if key not in config:
                config[key] = suggest(trial, key, domain)
        for short in space.on(config):
            for key, domain in space.settings_of(short).items():
                if key not in config:
                    config[key] = suggest(trial, key, domain)
        return config

    return define


def _held(space: RecipeSpace, fixed: Fixed | None) -> Config:
    """Return the fixed values, and the entries with only one value."""
    alone = {
        key: domain.values[0]
        for key, domain in space.entries.items()
        if isinstance(domain, Choice) and len(domain.values) == 1
    }
    held = alone | dict(fixed or {})
    space.check(held)
    searched = [key for key in space.entries if key not in held]
    if not searched:
        raise SpaceError(f"everything is fixed, {held}: leave something to search")
    return held
