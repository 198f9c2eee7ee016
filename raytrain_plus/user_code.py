"""The user's code on which a run's bits depend: the files of its modules, by their hashes.

The driver finds the modules by reading their import statements, without running anything. Each
worker reports which of the user's files it has loaded when the task is built and probed. The user's
files are all that belong neither to Python, nor to an installed package, nor to raytrain_plus.
"""

import ast
import contextlib
import hashlib
import inspect
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

_MAIN = "__main__"
_INSTALLED = {"site-packages", "dist-packages"}
_OURS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class CodeFile:
    """A file of the user's.

    Attributes:
        path: where it is; empty for source without a file, as in a notebook.
        sha256: of its content, in hex.
    """

    path: str
    sha256: str


Code = Mapping[str, CodeFile]
"""Files by their names: a module's name with slashes, such as package/module.py."""

# Python 3.11 counts the depth of all syntax trees together that any thread is building.
_PARSING = threading.Lock()


def code_behind(things: Iterable[Any], folders: Sequence[str]) -> dict[str, CodeFile]:
    """Return the files that define some objects, and all files of the user that these import.

    Args:
        things: objects: a task, aspects, transforms. The contents of their fields count, too.
        folders: where to search modules that are not imported yet.
    """
    found: dict[str, CodeFile] = {}
    left = [name for thing in things for name in _modules_of(thing)]
    seen: set[str] = set()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _file_of(name, folders)
        if path is None or not is_users(path):
            continue
        with contextlib.suppress(OSError):  # an optional import of a module that does not exist
            content = path.read_bytes()
            found[_file_name_of(name, path)] = CodeFile(
                str(path), hashlib.sha256(content).hexdigest()
            )
            left += _imports(content, name, is_package=path.name == "__init__.py")
    return {**_typed_in(things), **dict(sorted(found.items()))}


def loaded_code() -> dict[str, CodeFile]:
    """Return the files of the user's that this process has imported."""
    found = {}
    for name, module in list(sys.modules.items()):
        path = _path_of(module)
        if path is not None and name != _MAIN and is_users(path):
            with contextlib.suppress(OSError):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[_file_name_of(name, path)] = CodeFile(str(path), digest)
    return found


def as_if_edited(code: Code, thing: Any) -> dict[str, CodeFile]:
    """Return the hashes as they would be if the file that defines an object had been edited.

    Args:
        code: files, which may include that one.
        thing: the object.
    """
    found = dict(code)
    for name in _modules_of(thing):
        path = _file_of(name, ())
        if path is not None and (file := found.get(told := _file_name_of(name, path))) is not None:
            edited = hashlib.sha256(path.read_bytes() + b"\n").hexdigest()
            return {**found, told: CodeFile(file.path, edited)}
    return found


def difference(meant: Code, found: Code) -> str:
    """Say which files differ; empty if all files that both have are equal.

    A worker may import fewer files than the driver has seen, or more.
    """
    return "; ".join(
        f"{name} has changed ({found[name].path})"
        for name, file in meant.items()
        if name in found and found[name].sha256 != file.sha256
    )


def is_users(path: Path) -> bool:
    """Say whether a file is the user's own code."""
    if _INSTALLED.intersection(path.parts) or path.is_relative_to(_OURS):
        return False
    return not any(path.is_relative_to(folder) for folder in standard_folders())


def is_users_module(name: str) -> bool:
    """Say whether an imported module is the user's own code, by its name in `sys.modules`.

    What was typed at a prompt or in a notebook is.
    """
    if name == _MAIN:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return isinstance(file, str) and _is_users_file(file)


@cache
def _is_users_file(file: str) -> bool:
    return is_users(Path(file).resolve())


@cache
def standard_folders() -> tuple[Path, ...]:
    """Return the folders of Python's own library."""
    paths = sysconfig.get_paths()
    return tuple({Path(paths[key]).resolve() for key in ("stdlib", "platstdlib")})


def _modules_of(thing: Any) -> Iterator[str]:
    """Yield the names of the modules that define an object, its type, and its fields' values."""
    thing = thing.func if isinstance(thing, partial) else thing
    held = vars(thing).values() if hasattr(thing, "__dict__") else ()
    for one in (thing, *held):
        kinds = type(one).__mro__ if not inspect.isclass(one) else one.__mro__
        yield from (kind.__module__ for kind in kinds)
        module = one.__name__ if inspect.ismodule(one) else getattr(one, "__module__", None)
        if isinstance(module, str):
            yield module


def _typed_in(things: Iterable[Any]) -> dict[str, CodeFile]:
    """Return the source of classes that were typed at a prompt or in a notebook, if it is known."""
    found = {}
    for kind in {kind for thing in things for kind in type(thing).__mro__}:
        module = sys.modules.get(kind.__module__)
        if kind.__module__ == _MAIN and _path_of(module) is None:
            parts: list[Any] = [
                kind,
                *(one for one in vars(kind).values() if inspect.isfunction(one)),
            ]
            sources = []
            for part in parts:
                with _PARSING, contextlib.suppress(OSError, TypeError):
                    sources.append(inspect.getsource(part))
            if sources:
                digest = hashlib.sha256("\0".join(sources).encode()).hexdigest()
                found[f"{kind.__qualname__} of {_MAIN}"] = CodeFile("", digest)
    return found


def _file_of(name: str, folders: Sequence[str]) -> Path | None:
    if name in sys.modules:
        return _path_of(sys.modules[name])
    parts = name.split(".")
    for folder in folders:
        for path in (Path(folder, *parts, "__init__.py"), Path(folder, *parts).with_suffix(".py")):
            if path.is_file():
                return path.resolve()
    return None


def _path_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) and Path(file).is_file() else None


def _file_name_of(name: str, path: Path) -> str:
    """Return the name of a module's file, which does not depend on where the file is."""
    if name == _MAIN:
        return path.name
    parts = name.replace(".", "/")
    return f"{parts}/{path.name}" if path.stem == "__init__" else f"{parts}{path.suffix}"


def _imports(content: bytes, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the names of the modules that a source may import, anywhere in it."""
    try:
        with _PARSING:
            tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return  # a compiled module
    own = module.split(".") if module != _MAIN else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_package
            base = own[: len(own) - up] if node.level else []
            whole = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if whole:
                yield from _with_parents(whole)
                yield from (f"{whole}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))
