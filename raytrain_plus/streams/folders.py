"""Which files of a folder are its data: the same in `train`, in a `Stream` and in `data write`.

All files below the folder at any depth are its data, in the order of their names. Hidden and
temporary files are not: their names begin with "." or "_", or end like unfinished copies or backups
of editors. Folders named like `label=3` are columns. Training and test files are never read as
one.
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
from raytrain_plus.streams.unpacking import SUFFIXES

Form = Literal["table", "csv", "json", "images", "tar"]

INCOMPLETE = "_incomplete"
"""A file that marks a folder while it is written."""

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")

_FORMS: dict[str, Form] = {
    **dict.fromkeys(PARQUET_SUFFIXES, "table"),
    ".arrow": "table",
    ".feather": "table",
    ".ipc": "table",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".jsonlines": "json",
    ".ndjson": "json",
    ".json": "json",
    ".tar": "tar",
    ".tgz": "tar",
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"), "images"
    ),
}
_TEXT_PACKED = SUFFIXES
_PACKED = (*_TEXT_PACKED, ".lz4", ".lzma", ".br", ".snappy", ".sz", ".z", ".zip")
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
        "train": ("train", "training", "trainset", "trainingset"),
        "validation": ("validation", "valid", "val", "dev", "valset", "validationset", "devset"),
        "test": ("test", "testing", "eval", "evaluation", "holdout", "heldout", "testset"),
    }.items()
    for word in words
}
SPLITS = tuple(dict.fromkeys(_SPLITS.values()))
"""The names of splits here; folders may use other words for them."""

# Columns of folders like `split=train` that name splits.
_SPLIT_COLUMNS = {"split", "splits", "subset", "partition", "set"}

# JSON files that tools write next to data.
_DESCRIPTIONS = {
    "state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "metadata.json",
    "config.json", "schema.json",
}  # fmt: skip


@dataclass(frozen=True)
class DataPath:
    """A data file of a folder.

    Attributes:
        path: from the folder to the file.
        partitions: column -> value, from the folders in this path that are named like `label=3`.
    """

    path: str
    partitions: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """The data files of a folder, sorted by name, all of one form."""

    form: Form
    files: tuple[DataPath, ...]


def select(paths: Iterable[str], where: str, split: str | None = None) -> Contents:
    """Return which files of a folder without a manifest are its data.

    Args:
        paths: the paths of all files in the folder, relative to it.
        where: the name of the folder in an error.
        split: "train", "validation" or "test" selects the files that are named so; "all" reads
            all splits as one.

    Raises:
        DataError: there is no data, or it is not clear which files are data; the message says what
            to do.
    """
    everything = sorted(paths, key=lambda path: PurePosixPath(path).parts)
    _refuse_other_data_sets(everything, where)
    visible = [path for path in everything if not is_hidden(path)]
    chosen = of_split(visible, where, split)
    form, files = _of_one_form(chosen, where)
    if form == "images":
        return Contents(form, tuple(map(DataPath, files)))
    return Contents(form, _partitioned(files, where))


def is_hidden(path: str) -> bool:
    """Say whether a file is hidden, temporary or internal to a program, or in such a folder.

    Args:
        path: relative to the given folder.
    """
    *folders, name = PurePosixPath(path).parts
    if any(_is_hidden(part) and not _PARTITION.match(part) for part in folders):
        return True
    return _is_hidden(name) or any(part.lower() in _FOREIGN_FOLDERS for part in folders)


def suffix_of(path: str) -> str:
    """Return the suffix of a file's name in lower case, without that of its compression."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    if len(suffixes) > 1 and suffixes[-1] in _TEXT_PACKED and suffixes[-2] in _FORMS:
        return suffixes[-2] if _FORMS[suffixes[-2]] in ("csv", "json", "tar") else suffixes[-1]
    return suffixes[-1] if suffixes else ""


def form_of(path: str) -> Form | None:
    """Return the form of a file, by its name; None if it is not read here."""
    return _FORMS.get(suffix_of(path))


def is_split(name: str) -> bool:
    """Say whether the name of a folder is exactly that of a split."""
    return name.lower() in _SPLITS


def split_of_folder(name: str) -> str | None:
    """Return which split a folder is, if any: `train`, `train_data`, `Test.parquet`, `split=val`.

    The name must be that of a split, or begin or end with one.
    """
    partition = _PARTITION.match(name)
    if partition is not None:
        is_named = partition[1].lower() in _SPLIT_COLUMNS
        return _SPLITS.get(partition[2].lower()) if is_named else None
    words = _words(name)
    return next((_SPLITS[word] for word in words[:1] + words[-1:] if word in _SPLITS), None)


def split_of(path: str) -> str | None:
    """Return which split a file is in by the names of its folders and its own, if any.

    The name of a file must begin or end with that of a split, as in `train-00000-of-00001.parquet`,
    `digits_test.csv` or `digitsTest2.csv`. The folder of an image may be a label, such as
    `test_tubes`, so it counts only if its name is exactly that of a split.
    """
    *folders, name = PurePosixPath(path).parts
    for folder in folders:
        if is_split(folder):
            return _SPLITS[folder.lower()]
    for folder in folders[:-1] if form_of(name) == "images" else folders:
        if (split := split_of_folder(folder)) is not None:
            return split
    words = _words(name.split(".")[0])
    found = [_SPLITS[word] for word in words[:1] + words[-1:] if word in _SPLITS]
    return found[0] if found else None


def _splits_by_middle_word(paths: Iterable[str]) -> dict[str, str]:
    """Return the splits of files whose names differ in the name of a split only.

    `digits_train_small.csv` and `digits_test_small.csv` are such; `my-test-bench.csv` alone is not.
    """
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for path in paths:
        here = PurePosixPath(path)
        words = _words(here.name.split(".")[0])
        for place, word in enumerate(words):
            if word in _SPLITS:
                others = (str(here.parent), *words[:place], "", *words[place + 1 :])
                groups.setdefault(others, {}).setdefault(_SPLITS[word], []).append(path)
    return {
        path: split
        for splits in groups.values()
        for split, found in splits.items()
        for path in found
        if len(splits) > 1
    }


def _words(name: str) -> list[str]:
    """Return the words of a name, in small letters: `digitsTrain_2` is `digits` and `train`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[\W_\d]+", parted.lower()) if word]


def data_set_of_split(paths: Iterable[str], split: str | None) -> str | None:
    """Return the folder of a data set with an index, such as MDS, that is a split; None if none is.

    Args:
        paths: the paths of all files in a folder, relative to it.
        split: the split.
    """
    if split is None or split == "all":
        return None
    wanted = _SPLITS.get(split.lower(), split)
    indexes = (PurePosixPath(path) for path in paths)
    folders = [one.parent for one in indexes if one.name == MANIFEST and len(one.parts) > 1]
    found = [str(one) for one in folders if split_of_folder(one.parts[0]) == wanted]
    return found[0] if len(found) == 1 else None


def tables_of(contents: Contents, where: str) -> tuple[DataPath, ...]:
    """Return the Arrow and Parquet files of a folder.

    Raises:
        DataError: its files have another form, which must be written as a stream first.
    """
    if contents.form == "table":
        return contents.files
    raise DataError(
        f"{where} has files that cannot be trained on directly ({contents.files[0].path}): make a "
        f"stream of them with `raytrain-plus data write {where} NEW_PLACE`, and train on that."
    )


# -- the paths below a folder


def without_pattern(location: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], str | None]:
    """Return the folder before a pattern, and the pattern in it.

    `data/train-*.parquet` is the pattern `train-*.parquet` in `data`. A location without a pattern
    is returned as it is, and so is a path that exists with exactly this name. In a URL only `*`
    begins a pattern.
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
    """Return the paths that match a pattern, or that are in a folder that matches it.

    `*` and `?` match characters within a name, `**` matches folders at any depth.
    """
    expression = re.compile(_expression(pattern) + r"(/.*)?\Z")
    return [path for path in paths if expression.match(path)]


def paths_below(fs: Any, root: str, pattern: str | None = None) -> list[str]:
    """Return the paths of all files below a folder, relative to it; links are followed.

    Args:
        fs: the fsspec file system.
        root: the folder's path in it.
        pattern: the pattern that they must match; see `matching`.

    Raises:
        DataError: the target of a link is missing, or is in the folder as well, so that its rows
            would count twice.
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
        pattern: the pattern that they must match; see `matching`.

    Raises:
        DataError: as `paths_below`.
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
                _check_name(path)
                if not os.path.exists(path):  # noqa: PTH110
                    raise DataError(f"{path} is a link to a file that is not there: remove it.")
                check_regular(path)
                _note(found, os.path.realpath(path), inside, root)
            paths.append(inside)
    return paths


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path!r} is a name that is not UTF-8: rename it.") from error


def check_regular(path: str | os.PathLike[str]) -> None:
    """Check that a path of this machine is a regular file, which can be read more than once.

    Raises:
        DataError: it is a pipe, a socket or a device, from which a read may never return.
        OSError: it does not exist.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - many paths
        raise DataError(
            f"{path} is no regular file, but a pipe, a socket or a device, which cannot be read "
            "twice: store its output in a file."
        )


def _note(found: dict[str, str], real: str, path: str, root: str) -> bool:
    """Say whether a path leads to a new file; a visible path to a known file is refused."""
    before = found.setdefault(real, path)
    if before == path:
        return True
    if not is_hidden(path):
        raise DataError(
            f"{path!r} in {root} is a link to {before!r} in the same folder: its rows would count "
            "twice. Remove the link."
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


# -- the selection of files


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_")) or _UNFINISHED.search(name) is not None


def _refuse_other_data_sets(paths: Sequence[str], where: str) -> None:
    names = {PurePosixPath(path).name for path in paths}
    if INCOMPLETE in names:
        raise DataError(
            f"{where} is incomplete: it is being written, or its writer was killed (it has "
            f"{INCOMPLETE!r}). Wait for the writer, or remove the folder and write it again."
        )
    inner = sorted(
        str(PurePosixPath(path).parent)
        for path in paths
        if PurePosixPath(path).name == MANIFEST and not is_hidden(path)
    )
    if inner:
        raise DataError(
            f"{where} has {len(inner)} data sets in it: {listed(inner[:5])}. Give one of them, or "
            "a split if they are named so (`data write --split train`)."
        )
    left = [path for path in paths if _WRITER_S.match(PurePosixPath(path).name)]
    if left and not is_hidden(left[0]):
        raise DataError(
            f"{where} is not a complete stream: it has files of a StreamWriter ({left[0]}), but no "
            f"{MANIFEST}. The writer has not finished, or it was killed and has published "
            "nothing. Wait for it, or write the data set again."
        )
    table = format_of_table(paths)
    if table is not None:
        raise DataError(told(where, table))


def of_split(
    paths: Sequence[str], where: str, split: str | None, data: Sequence[str] | None = None
) -> list[str]:
    """Return the files of a split.

    Args:
        paths: all files of a folder.
        where: the folder's name in an error.
        split: the split; "all" for all files; None if there must be one only.
        data: those that are data; default: those of a form that is read here.

    Raises:
        DataError: there is no such split, or there are several.
    """
    if data is None:
        data = [path for path in paths if form_of(path) is not None]
    by_split: dict[str | None, list[str]] = {}
    by_middle = _splits_by_middle_word(path for path in data if form_of(path) != "images")
    for path in data:
        by_split.setdefault(split_of(path) or by_middle.get(path), []).append(path)
    splits = sorted(name for name in by_split if name is not None)
    if split == "all":
        return list(paths)
    if split is not None:
        wanted = _SPLITS.get(split.lower(), split)
        if wanted not in by_split:
            raise DataError(
                f"{where} has no split {split!r}. The splits in the names of its files and folders "
                f"are: {listed(splits)}."
            )
        return by_split[wanted]
    if len(splits) > 1:
        counts = ", ".join(f"{name} ({len(by_split[name])} files)" for name in splits)
        first = by_split[splits[0]][0]
        raise DataError(
            f"{where} holds several splits: {counts}; for example {first!r} is of "
            f"{splits[0]!r}. They are never read as one. Give one of them: a pattern such as "
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
    if "table" in by_form:  # images and descriptions next to tables are not rows
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
            "unless they are temporary or hidden (the name begins with '.' or '_')."
        )
    packed = next((path for path in paths if _is_packed(path)), None)
    if packed is not None:
        raise DataError(
            f"{packed!r} in {where} is packed in a way that is not read here: unpack it, or leave "
            f"it out with a pattern. Only text may be packed, as {', '.join(_TEXT_PACKED)}."
        )
    if len(by_form) > 1:
        found = "; ".join(
            f"{len(files)} of {form} ({files[0]})" for form, files in sorted(by_form.items())
        )
        raise DataError(
            f"{where} has files of several forms: {found}. Select one form with a pattern, as in "
            f"'{where}/*.csv'."
        )
    return next(iter(by_form.items()))


def _is_packed(path: str) -> bool:
    """Say whether a file would be data if it were unpacked."""
    inner, suffix = PurePosixPath(path).stem, PurePosixPath(path).suffix
    return form_of(path) is None and suffix.lower() in _PACKED and form_of(inner) is not None


def _is_derived(path: str, paths: Sequence[str]) -> bool:
    """Say whether a file only describes data, or is a cache of Hugging Face's `map`."""
    here = PurePosixPath(path)
    if here.name in _DESCRIPTIONS:
        return True
    return here.name.startswith("cache-") and str(here.with_name("state.json")) in paths


def _partitioned(paths: Sequence[str], where: str) -> tuple[DataPath, ...]:
    raw = [_partitions(path, where) for path in paths]
    for path, found in zip(paths, raw, strict=True):
        if found.keys() != raw[0].keys():
            raise DataError(
                f"{where}: {paths[0]!r} is in folders for the columns {listed(raw[0])}, and "
                f"{path!r} is in folders for {listed(found)}: all files must have the same."
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
            raise DataError(f"{where}: {path!r} is in two folders for column {name!r}.")
        found[name] = value
    return found
