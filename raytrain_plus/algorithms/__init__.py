"""Speed-up algorithms as aspects around an unchanged model, one method per file."""

import ast
from typing import Any

import pydantic

from raytrain_plus.algorithms.aspect import Aspect as Aspect
from raytrain_plus.algorithms.aspect import AspectError as AspectError
from raytrain_plus.algorithms.aspect import Step as Step
from raytrain_plus.algorithms.aspect import Weave as Weave
from raytrain_plus.algorithms.gradient_clipping import GradientClipping as GradientClipping
from raytrain_plus.algorithms.label_smoothing import LabelSmoothing as LabelSmoothing

ALGORITHMS: dict[str, type[Aspect]] = {
    kind.__name__: kind for kind in (GradientClipping, LabelSmoothing)
}


def parse_algorithm(text: str) -> Aspect:
    """Make an aspect from `Name` or `Name:key=value,key=value`.

    Raises:
        AspectError: there is no such algorithm or setting, or a value is not allowed.
    """
    name, _, settings_text = text.partition(":")
    if name not in ALGORITHMS:
        raise AspectError(f"no algorithm is called {name!r}; there are {', '.join(ALGORITHMS)}")
    settings: dict[str, Any] = {}
    for item in filter(None, settings_text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise AspectError(f"setting {item!r} of {name} is not of the form key=value")
        settings[key.strip()] = _value(value.strip())
    kind = ALGORITHMS[name]
    try:
        return kind(**settings)
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        known = ", ".join(f"{k}={f.default!r}" for k, f in kind.model_fields.items())
        raise AspectError(f"settings of {name}: {wrong}. It has {known}") from error


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
