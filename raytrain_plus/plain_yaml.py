"""YAML from an untrusted file: plain data in bounded memory, or a clear error."""

from pathlib import Path
from typing import Any

import yaml

_MOST_BYTES = 4 << 20
_MOST_VALUES = 200_000  # including repetition by aliases: ten lines can stand for billions


class YamlError(ValueError):
    """A file that is not usable YAML; the message says why."""


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        OSError: it cannot be read.
        YamlError: it is too large, or not plain YAML.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise YamlError(f"it has more than {_MOST_BYTES >> 20} MiB")
    try:
        return load_yaml(content.decode())
    except UnicodeDecodeError as error:
        raise YamlError(f"it is not text ({error})") from None


def load_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        YamlError: it is too large, or not plain YAML.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise YamlError(f"it is not YAML: {error}") from None
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise YamlError(f"it is not YAML: {error}") from None  # a date such as 2026-99-99
    try:
        values = _values(found, {})
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    if values > _MOST_VALUES:
        raise YamlError(f"it stands for more than {_MOST_VALUES} values")
    return found


def _values(value: Any, known: dict[int, int]) -> int:
    """Count values, repeating those behind an alias; each object is visited once."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES + 1  # for an object that contains itself
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
        known[id(value)] = min(_MOST_VALUES + 1, 1 + sum(_values(one, known) for one in inner))
    return known[id(value)]
