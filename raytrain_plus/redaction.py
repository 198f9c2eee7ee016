"""Replaces secrets in text that people read.

Passwords and keys come in through URLs (`https://user:password@host`, signed queries) and through
the options of a file system. All text that leaves this process passes `redact`: errors, the
journal and reports made from it, and what the commands print.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

HIDDEN = "***"

_WORD = (
    r"(?:password|passwd|pwd|secret|credentials?|authorization|api[_-]?key|"
    r"access[_-]?key(?:[_-]?id)?|account[_-]?key|private[_-]?key|sas[_-]?token|"
    r"(?:auth|access|session|security|refresh|api|bearer|id)[_-]?token)"
)
_KEY = rf"(?:[\w.\-]*[_.\-])?{_WORD}(?:[_\-][\w\-]*)?"
_NAMES_A_SECRET = re.compile(_KEY, re.IGNORECASE)
# Short words that are harmless elsewhere: a model has tokens, a table has keys.
_NAMES_AN_OPTION = re.compile(rf"{_KEY}|token|key|sig|sas|signature", re.IGNORECASE)
_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\s'\"&,;)}\]]+)"
_PATTERNS = (
    # https://user:password@host: up to the last @, as a password may contain one unquoted.
    (re.compile(r"\b([A-Za-z][\w+.\-]*://)[^/\s:@'\"]*:(?!\d+(?:/|$))[^\s?'\"<>]*@"), r"\1***@"),
    (re.compile(r"\b([A-Za-z][\w+.\-]*://)[^\s/?#'\"<>@]+@"), r"\1***@"),
    # A signed query: X-Amz-Signature=..., sig=...
    (
        re.compile(
            r"(?i)([?&][^=&\s'\"]*(?:token|sig|signature|key|secret|password|credential|auth)"
            r"[^=&\s'\"]*=)[^&\s'\"]+"
        ),
        r"\1***",
    ),
    # Settings, options and headers: password=..., 'secret': '...', Authorization: Bearer ...
    (re.compile(rf"(?i)\b({_KEY}['\"]?\s*[=:]\s*(?:(?:bearer|basic)\s+)?){_VALUE}"), r"\1***"),
    (re.compile(r"(?i)(['\"](?:token|key|sig|sas)['\"]\s*:\s*)(?:\"[^\"]*\"|'[^']*')"), r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9+/=._\-]{12,}"), r"\1 ***"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), HIDDEN),
)
_OPTION_VALUE = re.compile(r"(--(?:storage|checkpoint)-option[ =]\"?[^\s=]+=)\S+")
_MARKS = ("@", "=", ":", "earer", "asic", "AKIA", "ASIA")
_LEAST = 4  # letters of an option's value that is searched in texts


def redact(text: str, secrets: frozenset[str] = frozenset()) -> str:
    """Return a text in which everything that looks like a secret is replaced.

    Args:
        text: for people.
        secrets: values to replace in any case, see `secrets_of`.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    if not any(mark in text for mark in _MARKS):
        return text
    before = None
    while text != before:  # a URL may contain another one
        before = text
        for pattern, shown in _PATTERNS:
            text = pattern.sub(shown, text)
    return text


def redact_command(line: str) -> str:
    """Return a command line without secrets, and without the values of a store's options."""
    return redact(_OPTION_VALUE.sub(r"\1***", line))


def redacted(value: Any) -> Any:
    """Return JSON data without secrets: in its texts, and under keys that name a secret."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(inner, str) and names_a_secret(key) else redacted(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return value


def redacted_repr(value: Any) -> str:
    """Return a dataclass's `repr` without secrets."""
    shown = (f"{one.name}={getattr(value, one.name)!r}" for one in fields(value) if one.repr)
    return redact(f"{type(value).__qualname__}({', '.join(shown)})")


def names_a_secret(key: object) -> bool:
    """Say whether the value under a key is a secret."""
    return isinstance(key, str) and _NAMES_A_SECRET.fullmatch(key) is not None


def secrets_of(options: Mapping[str, Any]) -> frozenset[str]:
    """Return the values among a file system's options that must not be shown, at any depth."""
    found: set[str] = set()
    for key, value in options.items():
        if isinstance(value, Mapping):
            found |= secrets_of(value)
        elif isinstance(value, str) and len(value) >= _LEAST and _NAMES_AN_OPTION.fullmatch(key):
            found.add(value)
    return frozenset(found)
