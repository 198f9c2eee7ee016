"""The one rule for names of runs, trials, sweeps and checkpoints.

A name becomes a folder, a part of an object's key, the name of an actor, and an argument of a
command that runs on a cluster's head. A name that is valid in all of these needs no quoting
anywhere. Every other name is refused before anything is touched.
"""

import os
import unicodedata
from pathlib import Path

NAMESPACE = "raytrain_plus"  # of all named actors of Ray
MOST_BYTES = 200  # file systems take 255; the rest is for prefixes and suffixes
_SIGNS = frozenset("._-+=@,() ")
_RULE = (
    "a name has letters and digits of any script, blanks inside, and . _ - + = @ , ( ); it begins "
    "with a letter, a digit or _, does not end with a blank or a dot, and has at most "
    f"{MOST_BYTES} bytes"
)


class InvalidNameError(ValueError):
    """A name that cannot be used; the message says why."""


def check_name(name: str, what: str = "run name") -> str:
    """Return a name if it can be used everywhere without quoting.

    Args:
        name: the name.
        what: what it names, for the error.

    Raises:
        InvalidNameError: it breaks the rule.
    """
    why = _objection(name)
    if why:
        shown = name if len(name) <= 80 else f"{name[:60]}... ({len(name)} characters)"
        raise InvalidNameError(f"{what} {shown!a} {why}: {_RULE}")
    return name


def is_path(text: str) -> bool:
    """Say whether a text is a folder, where a user may give a name or a folder."""
    return "/" in text or os.sep in text or text in (".", "..", "~")


def check_reference(text: str, what: str = "run") -> str:
    """Return a run's name or folder as a user gave it, if it is valid.

    Raises:
        InvalidNameError: it is neither a valid name nor a valid folder.
    """
    if not is_path(text):
        return check_name(text, f"{what} name")
    if text.startswith("-") or any(unicodedata.category(letter) == "Cc" for letter in text):
        raise InvalidNameError(
            f"{what} folder {text!a} begins with - or holds a control character: write ./ in "
            "front of a folder that begins with -"
        )
    return text


def possible_folders(text: str, storage: str | os.PathLike[str]) -> list[Path | str]:
    """Return the folders that a name or a folder may stand for, in the order in which to look.

    A URL stays text.

    Args:
        text: a folder, or a name: then a folder of that name here, or in the storage.
        storage: where folders are searched by name.

    Raises:
        InvalidNameError: it is neither a usable name nor a folder.
    """
    here = Path(check_reference(text))
    if "://" in text:
        return [text.rstrip("/")]
    if is_path(text):
        return [here.expanduser()]
    if isinstance(storage, str) and "://" in storage:
        return [here, f"{storage.rstrip('/')}/{text}"]
    return [here, Path(storage).expanduser() / text]


def _objection(name: str) -> str:
    """Return what is wrong with a name; empty if nothing is."""
    if not name:
        return "is empty"
    wrong = next((letter for letter in name if not _is_allowed(letter)), None)
    if wrong is not None:
        sign = unicodedata.name(wrong, f"U+{ord(wrong):04X}")
        return f"holds {wrong!a} ({sign.lower()})"
    if not (name[0].isalnum() or name[0] == "_"):
        return f"begins with {name[0]!r}"
    if name[-1] in " .":
        return f"ends with {name[-1]!r}"
    if len(name.encode()) > MOST_BYTES:
        return f"has {len(name.encode())} bytes"
    if not unicodedata.is_normalized("NFC", name):
        return "is written with separate accents (write it in Unicode's form NFC)"
    return ""


def _is_allowed(letter: str) -> bool:
    return letter in _SIGNS or unicodedata.category(letter)[0] in "LMN"
