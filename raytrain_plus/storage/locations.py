"""Locations that a user gives: a path or a URL, and the options of its store.

The rules are the same for every command. A `file://` URL is percent-decoded, as `Path.as_uri()`
encodes it; "#" and "?" have no meaning in it and are part of the path. A path is used as it is,
but for a `~` at its beginning, which is the home folder. Any other URL goes to fsspec as it is.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from raytrain_plus import extras
from raytrain_plus.redaction import redact, secrets_of
from raytrain_plus.storage.errors import StorageError

_URL = re.compile(r"[A-Za-z][\w+.:-]*://")
_LOCAL = re.compile(
    r"(?:file|local):(?://(?P<host>[^/]*))?(?P<path>/.*|$)", re.IGNORECASE | re.DOTALL
)
# Options whose values stay text even if they look like numbers: names of accounts, and secrets.
_TEXT = re.compile(r"(^|_)(key|secret|token|password|passwd|user|username|name|id|string)$")
_LIBRARIES = {"s3://": "s3fs", "s3a://": "s3fs", "hf://": "huggingface_hub"}
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}


def local_path(location: str | os.PathLike[str]) -> Path | None:
    """Return the absolute path of a location on this machine; None for any other location.

    Args:
        location: a path, or a URL; an `os.PathLike` is always a path.

    Raises:
        StorageError: it is empty, not text, or a `file://` URL that names another host.
    """
    if not isinstance(location, str | os.PathLike):
        raise StorageError(
            f"{location!r} is a {type(location).__name__}, but must be a path or a URL."
        )
    text = os.fspath(location)
    if not text.strip() or "\0" in text:
        raise StorageError(
            f"{text!r} is not a path or URL: give a path. If it comes from a variable, set that."
        )
    if not isinstance(location, str):
        return Path(location).absolute()
    url = _LOCAL.match(location)
    if url is None:
        return None if _URL.match(location) else _expanded(location).absolute()
    if (url["host"] or "") not in ("", "localhost") or not url["path"]:
        raise StorageError(f"{location} is not on this machine: give a path or a file:/// URL.")
    return Path(unquote(url["path"])).absolute()


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


def file_system(
    location: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> tuple[Any, str]:
    """Return the fsspec file system of a location, and the path in it.

    Args:
        location: a path or a URL.
        options: for the file system; a local one ignores them.

    Raises:
        StorageError: the scheme of the URL is unknown, its library is not installed, or an option
            does not fit.
    """
    if (path := local_path(location)) is not None:
        return LocalFileSystem(), str(path)
    url = os.fspath(location)
    defaults = {"use_listings_cache": False} if url.startswith(("s3://", "s3a://")) else {}
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **{**defaults, **(options or {})})
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        module = next((name for scheme, name in _LIBRARIES.items() if url.startswith(scheme)), None)
        if isinstance(error, ImportError) and module is not None:
            raise StorageError(f"{url} cannot be read: {extras.how_to_install(module)}") from error
        given = f" with the storage options {', '.join(options)}" if options else ""
        said = f"{url} cannot be read{given}: {error}"
        raise StorageError(redact(said, secrets_of(options or {}))) from error
    return found


def parse_options(given: Iterable[str], what: str = "storage option") -> dict[str, Any]:
    """Return the options that a command line gives as KEY=VALUE.

    A value that is JSON is parsed: `anon=false`, `max_concurrency=4`,
    `client_kwargs={"region_name": "eu"}`. Any other value is text, and so are the values of
    `key`, `secret`, `token`, `password` and the like.

    Args:
        given: the texts.
        what: the name of an option in an error.

    Raises:
        StorageError: an option has another form, is given twice, or begins like JSON and is
            not JSON.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise StorageError(f"{what} {text!r} is not of the form KEY=VALUE")
        if name in options:
            raise StorageError(f"{what} {name!r} is given twice: give it once")
        options[name] = _value(name, value, what)
    return options


def _value(name: str, text: str, what: str) -> Any:
    plain = text.strip()
    if _TEXT.search(name.lower()) and plain[:1] not in ("{", '"'):
        return text
    if plain.lower() in _CONSTANTS:
        return _CONSTANTS[plain.lower()]
    try:
        return json.loads(plain, parse_constant=_refused)
    except ValueError as error:
        if plain[:1] in ("{", "[", '"'):
            raise StorageError(
                f"{what} {name!r} begins like JSON and cannot be read as such: {error}"
            ) from None
        return text


def _refused(constant: str) -> Any:
    raise ValueError(constant)
