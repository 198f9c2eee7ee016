"""A folder of predictions, which appears at once when all of them are there.

The parts are written into the folder `NAME.partial` next to it. Each is a file that is named by its
first row, and appears whole. When no part is missing, the folder is renamed. So `NAME` never holds
a part of the rows. A killed command leaves `NAME.partial`, and can continue with it.
"""

import contextlib
import fcntl
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain_plus.configure import ConfigError
from raytrain_plus.storage import atomic_files
from raytrain_plus.storage.locations import local_path

DESCRIPTION = "_predictions.json"
"""What was predicted, and with what. Readers of Parquet folders pass over such a name."""

Rows = tuple[int, int]
"""The first row, and the one after the last."""


def part_name(rows: Rows) -> str:
    """Return the name of the file that holds some rows. Names sort in the order of the rows."""
    return f"rows-{rows[0]:012d}.parquet"


class PredictionFolder:
    """Collects parts, and makes them visible together.

    Args:
        folder: the folder to make.
        description: of what is predicted. A folder that was begun is continued only if its
            description is the same.
        resume: continue with the parts that are there. Default: begin again.

    Raises:
        ConfigError: the folder exists already, or another process writes it, or what was begun
            there is something else.
    """

    def __init__(
        self, folder: Path, description: Mapping[str, Any], *, resume: bool = False
    ) -> None:
        self._folder = folder
        self._partial = folder.with_name(f"{folder.name}.partial")
        self._description = json.loads(json.dumps(dict(description)))
        self._schema: tuple[pa.Schema, Rows] | None = None
        check_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            shutil.rmtree(self._partial, ignore_errors=True)
        elif self._partial.is_dir():
            self._check_same()
        self._partial.mkdir(exist_ok=True)
        atomic_files.write(
            self._partial / DESCRIPTION, json.dumps(self._description, indent=1).encode()
        )

    def _check_same(self) -> None:
        try:
            before = json.loads((self._partial / DESCRIPTION).read_bytes())
        except (OSError, ValueError):
            before = {}
        keys = before.keys() | self._description.keys()
        differing = sorted(k for k in keys if before.get(k) != self._description.get(k))
        if differing:
            raise ConfigError(
                f"{self._partial} was begun with other settings ({', '.join(differing)}): leave "
                "out --resume to begin again"
            )

    def missing(self, parts: Sequence[Rows]) -> list[Rows]:
        """Return the parts that are not there yet."""
        return [rows for rows in parts if not self._is_whole(rows)]

    def _is_whole(self, rows: Rows) -> bool:
        path = self._partial / part_name(rows)
        try:
            found = pq.read_metadata(path)
        except (OSError, pa.ArrowException):
            return False
        self._check_schema(found.schema.to_arrow_schema(), rows)
        return bool(found.num_rows == rows[1] - rows[0])

    def write(self, rows: Rows, content: bytes) -> None:
        """Write a part.

        Raises:
            ConfigError: its columns differ from those of another part.
        """
        self._check_schema(pq.read_schema(io.BytesIO(content)), rows)
        atomic_files.write(self._partial / part_name(rows), content)

    def _check_schema(self, schema: pa.Schema, rows: Rows) -> None:
        if self._schema is None:
            self._schema = schema, rows
        first, where = self._schema
        if not schema.equals(first):
            raise ConfigError(
                f"task.predict() returned other columns for the rows from {rows[0]} on "
                f"({_said(schema)}) than for those from {where[0]} on ({_said(first)}): each batch "
                "must have the same names and types"
            )

    def commit(self, parts: Sequence[Rows]) -> None:
        """Make the folder visible.

        Args:
            parts: all that there must be.
        """
        meant = {part_name(rows) for rows in parts} | {DESCRIPTION}
        for path in self._partial.iterdir():
            if path.name not in meant:  # left by a process that was killed
                path.unlink()
        left = meant - {path.name for path in self._partial.iterdir()}
        assert not left, f"{sorted(left)} are missing"
        self._partial.rename(self._folder)


def _said(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def folder_at(place: str | Path) -> Path:
    """Return the folder that a path means.

    Raises:
        ConfigError: it is the URL of a store.
    """
    path = local_path(str(place))
    if path is None:
        raise ConfigError(
            f"predictions cannot be written to {place}: give a local folder, and copy it when it "
            "is there"
        )
    return path


def check_free(folder: Path) -> None:
    """Refuse to replace something.

    Raises:
        ConfigError: there is something of this name.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already: name another folder, or remove it")


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Be the only process on this machine that writes a folder of predictions.

    Raises:
        ConfigError: another process does.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another process writes predictions to {folder}") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
