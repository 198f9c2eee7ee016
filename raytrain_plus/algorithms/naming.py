"""Make aspects from what a user writes, and describe aspects for other processes."""

import ast
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pydantic

from raytrain_plus.algorithms.aspect import Aspect, AspectError
from raytrain_plus.algorithms.registry import ALGORITHMS, MONITORS
from raytrain_plus.task import TaskError, already_imported, import_named

_KNOWN = {**ALGORITHMS, **MONITORS}


class Described(NamedTuple):
    """An aspect as data.

    Attributes:
        kind: a name of the library, or `module:Class`.
        settings: its settings, as JSON can hold them.
    """

    kind: str
    settings: dict[str, Any]


def parse_algorithm(text: str) -> Aspect:
    """Make an aspect from `Name`, `Name:key=value,key=value`, or `module:Class:key=value`.

    Raises:
        AspectError: there is no such algorithm or setting, or a value is not allowed.
    """
    found = parse_description(text)
    import_class(found.kind)
    return make(found)


def parse_description(text: str) -> Described:
    """Read what `parse_algorithm` reads, without importing or checking anything.

    Raises:
        AspectError: a setting is not of the form key=value.
    """
    parts = text.split(":")
    # After a colon come settings, which have an equals sign, or the class in a module.
    of_a_user = parts[0] not in _KNOWN and len(parts) > 1 and "=" not in parts[1]
    name = ":".join(parts[:2]) if of_a_user else parts[0]
    settings = ":".join(parts[2 if of_a_user else 1 :])
    return Described(name, parse_settings(split_settings(settings), name))


def parse_settings(items: Iterable[str], owner: str) -> dict[str, Any]:
    """Read settings of the form `key=value`; a value that is not a Python literal is a text.

    Raises:
        AspectError: a setting has another form.
    """
    settings: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise AspectError(f"setting {item!r} of {owner} is not of the form key=value")
        settings[key.strip()] = _value(value.strip())
    return settings


def make(described: Described) -> Aspect:
    """Make an aspect from its description, which may have been read from a file.

    It imports nothing: the module of `module:Class` must be imported already, because the command
    line or Python code named it.

    Raises:
        AspectError: there is no such algorithm or setting, a value is not allowed, or the class is
            in a module that has not been imported.
    """
    name, settings = described
    kind = _kind(name)
    try:
        return kind(**settings)
    except pydantic.ValidationError as error:
        wrong = what_is_wrong(error)
        raise AspectError(f"settings of {name}: {wrong}. It has {_known(kind)}") from error


def what_is_wrong(error: pydantic.ValidationError) -> str:
    """Return one line that says which fields are wrong, and how."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def describe(aspect: Aspect) -> Described:
    """Return the description from which `make` makes an equal aspect; it must know the class."""
    kind = type(aspect)
    known = _KNOWN.get(kind.__name__) is kind
    name = kind.__name__ if known else f"{kind.__module__}:{kind.__qualname__}"
    return Described(name, aspect.model_dump(mode="json"))


def portable(aspect: Aspect) -> Aspect | Described:
    """Return aspects in a form for a process whose import path is not set yet.

    An aspect that is defined in a script or a function cannot be imported; it is sent as an object.
    """
    kind = type(aspect)
    importable = kind.__module__ != "__main__" and "<locals>" not in kind.__qualname__
    return describe(aspect) if importable else aspect


def unpack(aspects: Sequence[Aspect | Described]) -> list[Aspect]:
    """Return the aspects that the driver made portable; imports their classes."""
    for one in aspects:
        if isinstance(one, tuple):
            import_class(one[0])
    return [make(one) if isinstance(one, tuple) else one for one in aspects]


def import_class(name: str) -> None:
    """Import the module of a user's own algorithm; one of the library needs no import.

    Args:
        name: a name from the command line, from Python code, or from the driver to its workers;
            never one that was read from a file or came over the network.

    Raises:
        AspectError: it cannot be imported, or is not a class of an aspect.
    """
    if ":" not in name:
        return
    try:
        found = import_named(name, "algorithm")
    except TaskError as error:
        raise AspectError(str(error)) from error
    _checked(found, name)


def _kind(name: str) -> type[Aspect]:
    if ":" not in name:
        if name not in _KNOWN:
            raise AspectError(
                f"no algorithm is called {name!r}; there are {', '.join(_KNOWN)}. One of your "
                "own is named module:Class or file.py:Class"
            )
        return _KNOWN[name]
    found = already_imported(name)
    if found is None:
        raise AspectError(
            f"the algorithm {name!r} is in code that is not imported here. Code is never run "
            "because a file names it: if you trust it, name it on the command line "
            f"(--code {shlex.quote(name.rpartition(':')[0])}), or import it in your Python code"
        )
    return _checked(found, name)


def _checked(found: object, name: str) -> type[Aspect]:
    if not (isinstance(found, type) and issubclass(found, Aspect)):
        raise AspectError(f"{name} is not a class derived from raytrain_plus.algorithms.Aspect")
    return found


def _known(kind: type[Aspect]) -> str:
    fields = kind.model_fields.items()
    return ", ".join(f"{k}={f.default!r}" for k, f in fields) or "no settings"


def split_settings(text: str) -> list[str]:
    """Split `key=value,key=value` at commas outside of brackets."""
    found, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [item for item in found if item.strip()]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
