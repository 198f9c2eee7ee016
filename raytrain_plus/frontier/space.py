"""The space that a sweep searches: every recipe that it may propose, as data.

A recipe of the space can be converted to a flat config (name -> value), which search libraries use,
and back. Aspects that exclude each other, directly or through others, share one entry of the
config, a switch. Its values are their allowed combinations. So no config has two aspects that
exclude each other, and a sampler that draws a switch evenly prefers no combination.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from raytrain_plus.algorithms import Aspect, AspectError
from raytrain_plus.algorithms.naming import Described, import_class, make
from raytrain_plus.algorithms.times import Time
from raytrain_plus.clock import Duration
from raytrain_plus.frontier.domain import Choice, Domain, Range, Scalar
from raytrain_plus.frontier.recipe import Recipe

Pairs = Collection[frozenset[str]]
"""Pairs of names that exclude each other."""


class Switch(NamedTuple):
    """One entry of a config that turns aspects on.

    Attributes:
        key: the aspect's name, or `A_or_B` for aspects that exclude each other.
        choices: value of the entry -> the aspects that are on: False and True, or `none`, `A`, `B`
            and so on, with `A+C` if A and C are allowed together.
    """

    key: str
    choices: dict[bool | str, frozenset[str]]

    @property
    def off(self) -> bool | str:
        """The value that turns no aspect on."""
        return next(iter(self.choices))

    def value_of(self, on: Iterable[str]) -> bool | str:
        """Return the value that turns on exactly those of its aspects that are in `on`."""
        wanted = frozenset(on) & frozenset().union(*self.choices.values())
        return next(value for value, names in self.choices.items() if names == wanted)


def switches(names: Sequence[str], pairs: Pairs) -> tuple[Switch, ...]:
    """Return the switches of some aspects; each aspect belongs to one of them."""
    found = []
    for group in _connected(names, pairs):
        choices: dict[bool | str, frozenset[str]]
        if len(group) == 1:
            choices = {False: frozenset(), True: frozenset(group)}
        else:
            allowed = [
                chosen
                for size in range(1, len(group))
                for chosen in combinations(group, size)
                if not excluded(chosen, pairs)
            ]
            choices = {"none": frozenset(), **{"+".join(c): frozenset(c) for c in allowed}}
        found.append(Switch("_or_".join(group), choices))
    return tuple(found)


def excluded(names: Iterable[str], pairs: Pairs) -> list[tuple[str, str]]:
    """Return the pairs among some names that exclude each other, in alphabetical order."""
    return [pair for pair in combinations(sorted(set(names)), 2) if frozenset(pair) in pairs]


def _connected(names: Sequence[str], pairs: Pairs) -> list[list[str]]:
    """Return groups of names; names that exclude each other are in the same group."""
    groups: list[list[str]] = []
    for name in names:
        near = [g for g in groups if any(frozenset((name, other)) in pairs for other in g)]
        groups = [g for g in groups if g not in near]
        groups.append([*(other for group in near for other in group), name])
    return sorted(groups, key=lambda group: min(names.index(name) for name in group))


Config = dict[str, Any]
"""Flat: `duration`, `batch_size`, `task.<setting>`, each switch's key, `<Aspect>.<setting>`."""


class SpaceError(ValueError):
    """A space is empty or contradicts itself, or a config or recipe is outside of it."""


class RecipeSpace(BaseModel):
    """Which recipes a sweep may propose.

    Attributes:
        baseline: the recipe that all others are compared with. Settings that the space does not
            vary have its values in every recipe. The baseline itself is in the space.
        aspects: the aspects that may be on, `Name` or `module:Class` -> settings, each a `Range`,
            a `Choice` or a fixed value. Settings that are left out keep the aspect's default.
        excludes: groups of aspects, by class name, of which at most one may be on. Conflicts that
            aspects declare are added.
        task: settings of the task that vary. Default none.
        batch_sizes: batch sizes to choose from. Default: only the baseline's.
        durations: from short to long, in one unit. Default: only the baseline's.

    Raises:
        ValidationError: (pydantic's, a ValueError) the space is wrong; the message says where.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    baseline: Recipe
    aspects: Mapping[str, Mapping[str, Range | Choice | Scalar]] = Field(default_factory=dict)
    excludes: Sequence[Sequence[str]] = ()
    task: Mapping[str, Range | Choice] = Field(default_factory=dict)
    batch_sizes: tuple[PositiveInt, ...] = ()
    durations: tuple[Time, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.aspects or self.task or len(self.batch_sizes) > 1):
            raise SpaceError(
                "the space is empty, it holds the baseline alone: name aspects that may be on, or "
                "settings of the task that vary"
            )
        check_durations(self.rungs)
        self._check_aspects()
        self._check_names()
        missing = sorted(self.task.keys() - self.baseline.task.keys())
        if missing:
            raise SpaceError(
                f"the baseline does not say its {', '.join(missing)}, which the space varies: put "
                "it into the baseline's task"
            )
        try:
            self.config(self.baseline)
        except SpaceError as error:
            raise SpaceError(f"the baseline is not in its own space: {error}") from error
        return self

    def _check_aspects(self) -> None:
        """Try each aspect together with the baseline's, at both ends of each of its settings."""
        both = sorted(self.aspects.keys() & self.baseline.algorithms.keys())
        if both:
            raise SpaceError(
                f"{', '.join(both)} is in the baseline and so in every recipe: take it out of the "
                "baseline or out of the space's aspects"
            )
        try:
            self.import_aspects()
            for name, settings in self.aspects.items():
                for key, domain in settings.items():
                    for value in _extremes(domain):
                        make(Described(name, {**_typical(settings), key: value}))
                algorithms = {**self.baseline.algorithms, name: _typical(settings)}
                self.baseline.model_copy(update={"algorithms": algorithms}).aspects()
        except AspectError as error:
            raise SpaceError(str(error)) from error

    def import_aspects(self) -> None:
        """Import the modules of a user's own aspects: a space is Python code, never read from disk.

        Raises:
            AspectError: one cannot be imported.
        """
        for name in self.aspects:
            import_class(name)

    def _check_names(self) -> None:
        if len(self.names) < len(self.aspects):
            raise SpaceError(f"among {', '.join(self.aspects)} two have the same class name")
        unknown = {name for group in self.excludes for name in group} - self.names.keys()
        if unknown:
            raise SpaceError(
                f"excludes: {', '.join(sorted(unknown))} is not among the aspects of the space, "
                f"which are {', '.join(self.names) or 'none'}"
            )
        keys = ["duration", "batch_size", *self.settings, *(s.key for s in self.switches)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise SpaceError(f"{', '.join(twice)} would mean two things in a config: rename one")

    @property
    def rungs(self) -> tuple[str, ...]:
        """The durations from short to long."""
        return self.durations or (self.baseline.duration,)

    @cached_property
    def names(self) -> dict[str, str]:
        """Class name -> the name by which the space and its recipes hold the aspect."""
        return {self._made(name).name: name for name in self.aspects}

    @cached_property
    def settings(self) -> dict[str, Domain]:
        """The task's and aspects' settings that vary: name in a config -> domain."""
        of_aspects = {
            f"{short}.{key}": domain
            for short, name in self.names.items()
            for key, domain in self.aspects[name].items()
            if isinstance(domain, Range | Choice)
        }
        return {**{f"task.{key}": domain for key, domain in self.task.items()}, **of_aspects}

    @cached_property
    def switches(self) -> tuple[Switch, ...]:
        """The entries of a config that turn aspects on; each aspect belongs to one."""
        return switches(list(self.names), self._exclusions)

    @cached_property
    def entries(self) -> dict[str, Domain]:
        """All entries of a config: name -> domain."""
        return {
            "duration": Choice(values=self.rungs),
            "batch_size": Choice(values=self.batch_sizes or (self.baseline.batch_size,)),
            **{switch.key: Choice(values=tuple(switch.choices)) for switch in self.switches},
            **self.settings,
        }

    def settings_of(self, short: str) -> dict[str, Domain]:
        """Return the settings of an aspect, or of `task`, that vary, by their names in a config."""
        return {k: d for k, d in self.settings.items() if k.startswith(f"{short}.")}

    def refusal(self, on: Iterable[str]) -> str | None:
        """Return why aspects, by class name, may not be on together; None if they may."""
        chosen = sorted(set(on))
        unknown = [name for name in chosen if name not in self.names]
        if unknown:
            return f"{', '.join(unknown)} is not in the space, which has {', '.join(self.names)}"
        wrong = excluded(chosen, self._exclusions)
        return f"{' and '.join(wrong[0])} exclude each other" if wrong else None

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a config, or a part of one, with entries that are not in the space.

        Raises:
            SpaceError: an entry is unknown or outside of its domain.
        """
        for key, value in config.items():
            if key not in self.entries:
                raise SpaceError(
                    f"{key!r} is not in the space, which has {', '.join(self.entries)}"
                )
            if value not in self.entries[key]:
                raise SpaceError(f"{key}={value!r} is not in the space: it is {self.entries[key]}")

    def on(self, config: Mapping[str, Any]) -> list[str]:
        """Return the class names of the aspects that a config turns on, in the space's order."""
        chosen = {
            name
            for switch in self.switches
            for name in switch.choices[config.get(switch.key, switch.off)]
        }
        return [short for short in self.names if short in chosen]

    def recipe_with(self, on: Iterable[str], duration: str | None = None) -> Recipe:
        """Return the baseline with some aspects on, at typical settings.

        The typical value of a choice is its first, that of a range its middle.

        Args:
            on: class names of the aspects.
            duration: duration of the recipe. Default the baseline's.

        Raises:
            SpaceError: the aspects may not be on together, or are not in the space.
        """
        chosen = set(on)
        if refused := self.refusal(chosen):
            raise SpaceError(refused)
        config: Config = {switch.key: switch.value_of(chosen) for switch in self.switches}
        for short in chosen:
            config |= {key: domain.typical for key, domain in self.settings_of(short).items()}
        return self.recipe(config | ({"duration": duration} if duration else {}))

    def recipe(self, config: Mapping[str, Any]) -> Recipe:
        """Return the recipe of a config.

        Entries that are left out are as in the baseline, but every varying setting of an aspect
        that is on must be given. Settings of aspects that are off are ignored.

        Raises:
            SpaceError: an entry is unknown, missing or outside of its domain, or an aspect refuses
                a combination of its own settings.
        """
        self.check(config)
        said = self._of_baseline | dict(config)
        algorithms = dict(self.baseline.algorithms)
        for short in self.on(config):
            missing = sorted(self.settings_of(short).keys() - said.keys())
            if missing:
                raise SpaceError(f"a config that turns {short} on must say {', '.join(missing)}")
            name = self.names[short]
            algorithms[name] = {
                key: said.get(f"{short}.{key}", fixed) for key, fixed in self.aspects[name].items()
            }
        recipe = Recipe(
            duration=said["duration"],
            batch_size=said["batch_size"],
            task={**self.baseline.task, **{key: said[f"task.{key}"] for key in self.task}},
            algorithms=algorithms,
        )
        try:
            recipe.aspects()
        except AspectError as error:
            raise SpaceError(str(error)) from error
        return recipe

    def config(self, recipe: Recipe) -> Config:
        """Return the config of a recipe: all entries except settings of aspects that are off.

        Raises:
            SpaceError: the recipe lies outside of the space.
        """
        on = [short for short, name in self.names.items() if name in recipe.algorithms]
        if refused := self.refusal(on):
            raise SpaceError(refused)
        config: Config = {"duration": recipe.duration, "batch_size": recipe.batch_size}
        config |= {switch.key: switch.value_of(on) for switch in self.switches}
        config |= {f"task.{key}": recipe.task.get(key) for key in self.task}
        for short in on:
            said = recipe.algorithms[self.names[short]]
            config |= {k: said.get(k.removeprefix(f"{short}.")) for k in self.settings_of(short)}
        back = self.recipe(config)
        for part in ("task", "algorithms"):
            ours, theirs = dict(getattr(back, part)), dict(getattr(recipe, part))
            if ours != theirs:
                raise SpaceError(
                    f"the recipe's {part} are {theirs}; where the space does not vary them, they "
                    f"must be as in {ours}"
                )
        return config

    @property
    def _of_baseline(self) -> Config:
        config: Config = {
            "duration": self.baseline.duration,
            "batch_size": self.baseline.batch_size,
        }
        return config | {f"task.{key}": self.baseline.task[key] for key in self.task}

    @cached_property
    def _exclusions(self) -> frozenset[frozenset[str]]:
        stated = {frozenset(pair) for group in self.excludes for pair in combinations(group, 2)}
        declared = {
            frozenset((short, other))
            for short, name in self.names.items()
            for other in self._made(name).conflicts_with
            if other in self.names
        }
        return frozenset(stated | declared)

    def _made(self, name: str) -> Aspect:
        return make(Described(name, _typical(self.aspects[name])))


def _typical(settings: Mapping[str, Domain | Scalar]) -> dict[str, Any]:
    return {k: v.typical if isinstance(v, Range | Choice) else v for k, v in settings.items()}


def _extremes(domain: Domain | Scalar) -> Sequence[Any]:
    return domain.extremes if isinstance(domain, Range | Choice) else (domain,)


def check_durations(texts: Sequence[str]) -> None:
    """Refuse durations that do not rise.

    Raises:
        SpaceError: they do not rise, or have several units.
    """
    durations = [Duration.parse(text) for text in texts]
    if len({duration.unit for duration in durations}) > 1:
        raise SpaceError(f"durations {', '.join(texts)} have several units: write all in one")
    values = [duration.value for duration in durations]
    if values[0] <= 0 or any(a >= b for a, b in pairwise(values)):
        raise SpaceError(f"durations {', '.join(texts)} must rise, from above zero")
