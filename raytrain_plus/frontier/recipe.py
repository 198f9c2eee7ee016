"""Recipes: all settings of a run that trade time for quality, as data."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raytrain_plus.algorithms import Aspect
from raytrain_plus.algorithms.naming import Described, make, what_is_wrong
from raytrain_plus.algorithms.times import Time
from raytrain_plus.algorithms.weave import in_order
from raytrain_plus.plain_yaml import YamlError, load_yaml, read_yaml

_BUNDLED = "raytrain_plus.reference"


class RecipeError(ValueError):
    """A recipe that does not exist or cannot be understood."""


class Recipe(BaseModel):
    """One candidate of a sweep.

    Attributes:
        about: a sentence that describes it.
        duration: how long to train; the schedule scales with it.
        batch_size: samples per step.
        task: settings of the task, such as the learning rate.
        algorithms: name or `module:Class` -> settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str = ""
    duration: Time
    batch_size: int = Field(gt=0)
    task: Mapping[str, Any] = Field(default_factory=dict)
    algorithms: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)

    def aspects(self) -> list[Aspect]:
        """Return the algorithms in the order in which they nest.

        Nothing is imported: the module of `module:Class` must be imported already.

        Raises:
            AspectError: one does not exist, is not imported or is set wrongly, or they do not go
                together.
        """
        return in_order([make(Described(n, dict(s or {}))) for n, s in self.algorithms.items()])


def read_recipe(name: str) -> Recipe:
    """Read a recipe.

    Args:
        name: a YAML file, or `task/recipe` for one that comes with a reference task, such as
            `cluttered_digits/medium`.

    Raises:
        RecipeError: there is no such recipe, or the file holds something else.
    """
    path = Path(name)
    bundled = files(_BUNDLED) / "recipes"
    try:
        if path.suffix in (".yaml", ".yml"):
            content = read_yaml(path)
        else:
            content = load_yaml((bundled / f"{name}.yaml").read_text())
    except YamlError as error:
        raise RecipeError(f"recipe {name}: {error}") from error
    except (OSError, ValueError) as error:  # also if the name cannot be the name of a file
        raise RecipeError(
            f"there is no recipe {name!r}: give a .yaml file or one of {', '.join(bundled_names())}"
        ) from error
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: {what_is_wrong(error)}") from error


def bundled_names() -> list[str]:
    """Return the names of the recipes that come with the reference tasks."""
    folder = files(_BUNDLED) / "recipes"
    return sorted(
        f"{task.name}/{recipe.name.removesuffix('.yaml')}"
        for task in folder.iterdir()
        for recipe in task.iterdir()
    )
