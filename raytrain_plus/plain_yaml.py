"""YAML from an untrusted file: plain data in bounded memory, or a clear error.

Values are read as YAML 1.2 defines them. YAML 1.1, PyYAML's default, reads `1:3` as the number 63,
`3e-4` as text, `no` as false and `2026-01-01` as a date. A key that is given twice is an error.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_MOST_BYTES = 4 << 20
_MOST_VALUES = 200_000  # including repetition by aliases: ten lines can stand for billions

# The core schema of YAML 1.2.
_RESOLVERS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", "~nN\0"),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?((\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "tag:yaml.org,2002:merge": (r"<<", "<"),
}


class YamlError(ValueError):
    """A file that is not usable YAML; the message says why."""


class _Loader(yaml.SafeLoader):
    """Reads plain data by the core schema of YAML 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - filled below

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        if isinstance(node, yaml.MappingNode):
            seen: dict[tuple[str, str], Any] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    first = seen.setdefault((key.tag, key.value), key)
                    if first is not key:
                        raise yaml.constructor.ConstructorError(
                            None,
                            None,
                            f"the key {key.value!r} was given in line {_line(first)} already",
                            key.start_mark,
                        )
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)

    def construct_yaml_float(self, node: Any) -> float:
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", self.construct_scalar(node).lower()))


class _Dumper(yaml.SafeDumper):
    """Quotes each text that `_Loader` would read as something else."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - filled below

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


for _kind in (_Loader, _Dumper):
    for _tag, (_pattern, _first) in _RESOLVERS.items():
        _kind.add_implicit_resolver(
            _tag, re.compile(f"(?:{_pattern})\\Z"), [c.strip("\0") for c in _first]
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


@dataclass(frozen=True)
class Document:
    """What a YAML text holds, and where.

    Attributes:
        value: the plain data; None if the text is empty.
    """

    value: Any
    _root: Any = None

    def place(self, keys: Sequence[str | int], *, of_key: bool = False) -> tuple[int, int]:
        """Return the line and the column, from 1, of what some keys lead to.

        Args:
            keys: of mappings, and indices of lists, from the outermost. A key that is not found is
                left out, so that the place is that of the value around it.
            of_key: return the place of the last key instead of its value.
        """
        node, mark = self._root, None if self._root is None else self._root.start_mark
        for key in keys:
            found = None
            if isinstance(node, yaml.MappingNode):
                found = next((pair for pair in node.value if pair[0].value == str(key)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
                found = (node.value[key],) * 2 if key < len(node.value) else None
            if found is not None:
                node = found[1]
                mark = (found[0] if of_key else node).start_mark
        return (1, 1) if mark is None else (mark.line + 1, mark.column + 1)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        OSError: it cannot be read.
        YamlError: it is too large, or not plain YAML.
    """
    return read_document(path).value


def read_document(path: Path) -> Document:
    """Return what a YAML file holds, with the places of its values.

    Raises:
        OSError: it cannot be read.
        YamlError: it is too large, or not plain YAML.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise YamlError(f"it has more than {_MOST_BYTES >> 20} MiB")
    try:
        return _load(content.decode())
    except UnicodeDecodeError as error:
        raise YamlError(f"it is not text ({error})") from None


def load_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        YamlError: it is too large, or not plain YAML.
    """
    return _load(text).value


def dump_yaml(value: Any) -> str:
    """Return plain data as YAML from which `load_yaml` reads the same data in the same order.

    Raises:
        YamlError: it holds something else than texts, numbers, true, false, None, lists and
            mappings.
    """
    try:
        return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    except yaml.YAMLError as error:
        raise YamlError(f"it is not plain data: {error}") from None


def _load(text: str) -> Document:
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            found = None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise YamlError(f"it is not YAML: {error}") from None
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise YamlError(f"it is not YAML: {error}") from None  # a number of too many digits
    try:
        values = _values(found, {})
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    if values > _MOST_VALUES:
        raise YamlError(f"it stands for more than {_MOST_VALUES} values")
    return Document(found, root)


def _line(node: Any) -> int:
    line: int = node.start_mark.line
    return line + 1


def _values(value: Any, known: dict[int, int]) -> int:
    """Count values, repeating those behind an alias; each object is visited once."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES + 1  # for an object that contains itself
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
        known[id(value)] = min(_MOST_VALUES + 1, 1 + sum(_values(one, known) for one in inner))
    return known[id(value)]
