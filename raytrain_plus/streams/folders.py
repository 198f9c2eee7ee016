"""What a folder of data files means: the same in `train`, in a `Stream` and in `data write`.

All files below the folder are its data, by name, whatever the depth. What is hidden or temporary is
none: names that begin with "." or "_", or end as unfinished copies and editors' backups do. Folders
named like `label=3` are columns. Training and test files are never read as one.
"""

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem

from raytrain_plus.storage.errors import StoreError, advice_on
from raytrain_plus.storage.locations import local_path
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import DataError, listed
from raytrain_plus.streams.foreign import format_of_files, format_of_table, told
from raytrain_plus.streams.format import MANIFEST

Form = Literal["table", "csv", "json", "images"]

INCOMPLETE = "_incomplete"
"""A file that stands in a folder while it is written."""

_FORMS: dict[str, Form] = {
    ".parquet": "table",
    ".pq": "table",
    ".arrow": "table",
    ".feather": "table",
    ".ipc": "table",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"), "images"
    ),
}
_TEXT_PACKED = (".gz", ".bz2", ".xz")
_UNFINISHED = re.compile(
    r"~$|^#.*#$|\.(tmp|temp|part|partial|crdownload|download|inprogress|incomplete|crc|swp|swo|bak"
    r"|old|orig|lock)$",
    re.IGNORECASE,
)
_FOREIGN_FOLDERS = {"lost+found", "@eadir", "$recycle.bin", "system volume information"}
_WRITER_S = re.compile(r"^part-\d{6}-[0-9a-f]{12}\.arrow$")
_PARTITION = re.compile(r"^([^=]+)=(.*)$")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_WHOLE_NUMBER = re.compile(r"^(0|-?[1-9]\d{0,17})$")
_MAGIC = re.compile(r"[*?\[]")
_SPLITS = {
    word: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "val", "dev"),
        "test": ("test", "testing", "eval", "evaluation", "holdout", "heldout"),
    }.items()
    for word in words
}
SPLITS = tuple(dict.fromkeys(_SPLITS.values()))
"""What a split is called here, whatever a folder calls it."""

# Other files of JSON that tools put next to data.
_DESCRIPTIONS = {
    "state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "metadata.json",
    "config.json", "schema.json",
}  # fmt: skip


@dataclass(frozen=True)
class DataPath:
    """A data file of a folder.

    Attributes:
        path: from the folder to the file.
        partitions: column -> value, of the folders on the way that are named like `label=3`.
    """

    path: str
    partitions: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """The data files of a folder, by name, all of one form."""

    form: Form
    files: tuple[DataPath, ...]


def select(paths: Iterable[str], where: str, split: str | None = None) -> Contents:
    """Return which of a folder's files are its data.

    Args:
        paths: of all files in it, relative to it; it has no manifest.
        where: what to call the folder in an error.
        split: "train", "validation" or "test", to take only the files that are named as such;
            "all" reads them as one.

    Raises:
        DataError: there is no data, or it is not clear which files are; the message says what to
            do.
    """
    everything = sorted(paths, key=lambda path: PurePosixPath(path).parts)
    _refuse_other_data_sets(everything, where)
    visible = [path for path in everything if not is_hidden(path)]
    chosen = _of_split(visible, where, split)
    form, files = _of_one_form(chosen, where)
    if form == "images":
        return Contents(form, tuple(map(DataPath, files)))
    return Contents(form, _partitioned(files, where))


def is_hidden(path: str) -> bool:
    """Say whether a file is hidden, temporary or another program's own, or lies in such a folder.

    Args:
        path: relative to the folder that was named.
    """
    *folders, name = PurePosixPath(path).parts
    if any(_is_hidden(part) and not _PARTITION.match(part) for part in folders):
        return True
    return _is_hidden(name) or any(part.lower() in _FOREIGN_FOLDERS for part in folders)


def suffix_of(path: str) -> str:
    """Return how a file's name ends, in small letters, without how it is packed."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    if len(suffixes) > 1 and suffixes[-1] in _TEXT_PACKED and suffixes[-2] in _FORMS:
        return suffixes[-2] if _FORMS[suffixes[-2]] in ("csv", "json") else suffixes[-1]
    return suffixes[-1] if suffixes else ""


def form_of(path: str) -> Form | None:
    """Return what a file is by its name; None for what is not read here."""
    return _FORMS.get(suffix_of(path))


def is_split(name: str) -> bool:
    """Say whether a folder of this name is a split."""
    return name.lower() in _SPLITS


def split_of(path: str) -> str | None:
    """Return which split a file is in by the names of its folders and its own, if any.

    A folder must be named like a split; a file's name must begin or end with one, as in
    `train-00000-of-00001.parquet` or `digits_test.csv`.
    """
    *folders, name = PurePosixPath(path).parts
    for folder in folders:
        if folder.lower() in _SPLITS:
            return _SPLITS[folder.lower()]
    words = [word for word in re.split(r"[\W_\d]+", name.split(".")[0].lower()) if word]
    found = [_SPLITS[word] for word in (words[:1] + words[-1:]) if word in _SPLITS]
    return found[0] if found else None


def tables_of(contents: Contents, where: str) -> tuple[DataPath, ...]:
    """Return the Arrow and Parquet files of a folder.

    Raises:
        DataError: its files are of another form, which must be written as a stream first.
    """
    if contents.form == "table":
        return contents.files
    raise DataError(
        f"{where} holds files that are not trained on as they are ({contents.files[0].path}): make "
        f"a stream of them with `raytrain-plus data write {where} NEW_PLACE`, and train on that."
    )


# -- the paths of a place


def without_pattern(location: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], str | None]:
    """Return the folder before a pattern, and the pattern in it.

    `data/train-*.parquet` is the pattern `train-*.parquet` in `data`. A place without a pattern is
    returned as it is, and so is a path that is there by that very name. In a URL only `*` begins a
    pattern.
    """
    local = local_path(location)
    if local is not None and (local.exists() or not isinstance(location, str)):
        return location, None
    whole = os.fspath(location) if local is None else str(local)
    parts = whole.split("/")
    magic = (lambda part: "*" in part) if local is None else _MAGIC.search
    first = next((i for i, part in enumerate(parts) if magic(part)), None)
    if first is None:
        return location, None
    root = "/".join(parts[:first]) or "/"
    return (root if local is None else Path(root)), "/".join(parts[first:])


def matching(paths: Iterable[str], pattern: str) -> list[str]:
    """Return the paths that a pattern names, or that lie in a folder that it names.

    `*` and `?` stand for characters within a name, `**` for folders of any depth.
    """
    expression = re.compile(_expression(pattern) + r"(/.*)?\Z")
    return [path for path in paths if expression.match(path)]


def paths_below(fs: Any, root: str, pattern: str | None = None) -> list[str]:
    """Return the paths of all files below a folder, relative to it; links are followed.

    Args:
        fs: the fsspec file system.
        root: the folder's path in it.
        pattern: that they must match; see `matching`.

    Raises:
        DataError: a link leads nowhere, or to what is there already: rows would count twice.
        OSError: the folder cannot be listed.
    """
    if isinstance(fs, LocalFileSystem):
        paths = _local_paths(root)
    else:
        prefix = root.rstrip("/") + "/"
        found = (path for path in fs.find(root) if path.startswith(prefix) and path != prefix)
        paths = [path[len(prefix) :] for path in found if not path.endswith("/")]
    return paths if pattern is None else matching(paths, pattern)


def paths_in(store: Store, pattern: str | None = None) -> list[str]:
    """Return the paths of all objects in a store's folder and below, sorted; see `paths_below`.

    Args:
        store: the folder.
        pattern: that they must match; see `matching`.

    Raises:
        DataError: links in it lead to the same file, or nowhere.
        StoreError: the folder cannot be listed, or is not there.
    """
    if not store.is_local:
        paths = store.paths()
        return paths if pattern is None else matching(paths, pattern)
    try:
        return sorted(paths_below(LocalFileSystem(), str(store.local_path), pattern))
    except OSError as error:
        raise StoreError(f"{store.url} cannot be listed: {error}{advice_on(error)}") from error


def _local_paths(root: str) -> list[str]:
    def failed(error: OSError) -> None:
        raise error

    found: dict[str, str] = {}  # real path -> the path by which it was found
    paths = []
    for folder, folders, names in os.walk(root, followlinks=True, onerror=failed):
        real = os.path.realpath(folder)
        if not _note(found, real, os.path.relpath(folder, root), root):
            folders.clear()
            continue
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)  # noqa: PTH118 - many paths
            inside = os.path.relpath(path, root)
            if form_of(name) is not None and not is_hidden(inside):
                if not os.path.exists(path):  # noqa: PTH110
                    raise DataError(f"{path} is a link to a file that is not there: remove it.")
                check_regular(path)
                _note(found, os.path.realpath(path), inside, root)
            paths.append(inside)
    return paths


def check_regular(path: str | os.PathLike[str]) -> None:
    """Check that a path of this machine is a file whose bytes can be read again and again.

    Raises:
        DataError: it is a pipe, a socket or a device, where reading would wait for ever.
        OSError: it is not there.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - many paths
        raise DataError(
            f"{path} is no regular file, but a pipe, a socket or a device, which cannot be read "
            "twice: store what comes out of it in a file."
        )


def _note(found: dict[str, str], real: str, path: str, root: str) -> bool:
    """Say whether a path leads to what was not found before; refuse it if it is visible."""
    before = found.setdefault(real, path)
    if before == path:
        return True
    if not is_hidden(path):
        raise DataError(
            f"{path!r} in {root} is a link to what is there already as {before!r}: its rows would "
            "count twice. Remove the link."
        )
    return False


def _expression(pattern: str) -> str:
    """Return a pattern as a regular expression."""
    pieces = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    found = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    return "".join(
        pieces.get(one) or (one.replace("[!", "[^") if one[:1] == "[" else re.escape(one))
        for one in found
    )


# -- choosing


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_")) or _UNFINISHED.search(name) is not None


def _refuse_other_data_sets(paths: Sequence[str], where: str) -> None:
    names = {PurePosixPath(path).name for path in paths}
    if INCOMPLETE in names:
        raise DataError(
            f"{where} is not whole: it is being written, or its writer was killed (it holds "
            f"{INCOMPLETE!r}). Wait for the writer, or remove the folder and write it again."
        )
    inner = sorted(
        str(PurePosixPath(path).parent)
        for path in paths
        if PurePosixPath(path).name == MANIFEST and not is_hidden(path)
    )
    if inner:
        raise DataError(
            f"{where} holds {len(inner)} data sets of their own: {listed(inner[:5])}. Name one."
        )
    left = [path for path in paths if _WRITER_S.match(PurePosixPath(path).name)]
    if left and not is_hidden(left[0]):
        raise DataError(
            f"{where} is not a whole stream: it holds files of a StreamWriter ({left[0]}), but no "
            f"{MANIFEST}. The writer is still at work, or it was killed and has published "
            "nothing. Wait for it, or write the data set again."
        )
    table = format_of_table(paths)
    if table is not None:
        raise DataError(told(where, table))


def _of_split(paths: Sequence[str], where: str, split: str | None) -> list[str]:
    data = [path for path in paths if form_of(path) is not None]
    by_split: dict[str | None, list[str]] = {}
    for path in data:
        by_split.setdefault(split_of(path), []).append(path)
    splits = sorted(name for name in by_split if name is not None)
    if split == "all":
        return list(paths)
    if split is not None:
        wanted = _SPLITS.get(split.lower(), split)
        if wanted not in by_split:
            raise DataError(
                f"{where} has no split {split!r}; the names of its files and folders tell of "
                f"{listed(splits)}."
            )
        return by_split[wanted]
    if len(splits) > 1:
        counts = ", ".join(f"{name} ({len(by_split[name])} files)" for name in splits)
        first = by_split[splits[0]][0]
        raise DataError(
            f"{where} holds several splits: {counts}; for example {first!r} is of "
            f"{splits[0]!r}. They are never read as one. Name one of them: a pattern such as "
            f"'{where}/**/train*', its folder, or a split (`Stream(..., split='train')`, `data "
            "write --split train`; 'all' reads all as one)."
        )
    return list(paths)


def _of_one_form(paths: Sequence[str], where: str) -> tuple[Form, list[str]]:
    by_form: dict[Form, list[str]] = {}
    for path in paths:
        form = form_of(path)
        if form is not None and not _is_derived(path, paths):
            by_form.setdefault(form, []).append(path)
    if "table" in by_form:  # a picture next to a table is no row of it, nor is a description
        by_form.pop("images", None)
    if len(by_form) > 1 and "json" in by_form:
        lines = [path for path in by_form["json"] if suffix_of(path) != ".json"]
        by_form["json"] = lines
        if not lines:
            del by_form["json"]
    if not by_form:
        foreign = format_of_files(paths)
        if foreign is not None:
            raise DataError(told(where, foreign))
        endings = sorted({suffix_of(path) or "no suffix" for path in paths})
        found = f"but only {', '.join(endings)}" if endings else "and no file at all"
        raise DataError(
            f"{where} has no data file, {found}: files ending in {', '.join(_FORMS)} are read, "
            "without those that are hidden (named with '.' or '_' first) or temporary."
        )
    if len(by_form) > 1:
        found = "; ".join(
            f"{len(files)} of {form} ({files[0]})" for form, files in sorted(by_form.items())
        )
        raise DataError(
            f"{where} holds files of several forms: {found}. Say which are meant with a pattern, "
            f"as in '{where}/*.csv'."
        )
    return next(iter(by_form.items()))


def _is_derived(path: str, paths: Sequence[str]) -> bool:
    """Say whether a file only describes data, or is a cache of what Hugging Face's map gave."""
    here = PurePosixPath(path)
    if here.name in _DESCRIPTIONS:
        return True
    return here.name.startswith("cache-") and str(here.with_name("state.json")) in paths


def _partitioned(paths: Sequence[str], where: str) -> tuple[DataPath, ...]:
    raw = [_partitions(path, where) for path in paths]
    for path, found in zip(paths, raw, strict=True):
        if found.keys() != raw[0].keys():
            raise DataError(
                f"{where}: {paths[0]!r} lies in folders for the columns {listed(raw[0])}, and "
                f"{path!r} in folders for {listed(found)}: all files must have the same ones."
            )
    whole = {
        name: all(_WHOLE_NUMBER.match(found[name]) for found in raw) for name in (raw or [{}])[0]
    }
    return tuple(
        DataPath(path, {name: int(v) if whole[name] else v for name, v in found.items()})
        for path, found in zip(paths, raw, strict=True)
    )


def _partitions(path: str, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in PurePosixPath(path).parts[:-1]:
        match = _PARTITION.match(part)
        if match is None:
            continue
        name, value = unquote(match[1]), unquote(match[2])
        if value == _NULL_PARTITION:
            raise DataError(
                f"{where}: the folder {part!r} of {path!r} says that column {name!r} is null, "
                "which a tensor cannot be: leave these files out with a pattern, or fill it in."
            )
        if name in found:
            raise DataError(f"{where}: {path!r} lies in two folders for column {name!r}.")
        found[name] = value
    return found
