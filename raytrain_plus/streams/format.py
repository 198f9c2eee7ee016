"""The format of a stream: a folder of Arrow IPC files, and a manifest of the data set.

The manifest, `index.json`, is published last and atomically, so a data set is complete or absent.
It names every file with its rows, sizes and hash. Files that it does not name are not part of the
data.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.foreign import format_of_index, told
from raytrain_plus.streams.labels import with_names
from raytrain_plus.streams.order import Order
from raytrain_plus.streams.vocabulary import Vocabularies, Vocabulary

MANIFEST = "index.json"
VERSION = 1

Compression = Literal["zstd", "lz4", "none"]
Count = Annotated[int, Field(ge=0, lt=2**48)]

# The order whose digest is in each manifest. The numbers are small enough for any data set.
_LANES, _SEED, PINNED_WINDOW = 3, 17, 2
_PINNED_ROWS = 64  # of each lane, at its beginning and at its end


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardEntry(_Strict):
    """One file of a data set.

    Attributes:
        name: its name in the folder.
        rows: its number of rows.
        stored_bytes: its size as it is stored.
        raw_bytes: its decompressed size.
        sha256: the SHA-256 of its stored bytes, in hex.
    """

    name: Annotated[str, Field(pattern=r"^[^/\\]+$")]
    rows: Count
    stored_bytes: Count
    raw_bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FoundFile(ShardEntry):
    """A file without a manifest, found in a folder; its name is the path in the folder."""

    name: str


class StreamManifest(_Strict):
    """The content of a manifest.

    Attributes:
        version: the version of this format.
        arrow_schema: the Arrow schema of every file, serialized by Arrow, in base64.
        columns: the same as text: name -> type.
        compression: the compression of the stored files.
        rows: the rows of all files.
        order: a digest of the places of the first and last rows of a fixed order. A reader that
            computes another digest would read the data in another order than the version that
            wrote it.
        files: the files, in their order.
        labels: column -> the name that each of its numbers stands for, from 0.
        label_skew: column of few different values -> how sorted by them the rows are; see
            `label_skew.py`.
        vocabularies: column of token numbers -> the tokenizer that made them: its number of tokens
            (`size`), the SHA-256 of its file (`tokenizer`), the tokens that it added to documents
            (`begin`, `end`), and the one that fills rows (`pad`).
    """

    version: Literal[1] = 1
    arrow_schema: str
    columns: dict[str, str]
    compression: Compression
    rows: Count
    order: str
    files: tuple[ShardEntry, ...]
    labels: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    label_skew: dict[str, float] = Field(default_factory=dict)
    vocabularies: dict[str, Vocabulary] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def _unique(cls, files: tuple[ShardEntry, ...]) -> tuple[ShardEntry, ...]:
        if len({file.name for file in files}) != len(files):
            raise ValueError("a file is named twice")
        if any(file.name in (".", "..") or not file.name.isprintable() for file in files):
            raise ValueError("the name of a file is not valid")
        return files

    @classmethod
    def of(
        cls,
        schema: pa.Schema,
        files: tuple[ShardEntry, ...],
        compression: Compression,
        labels: Mapping[str, tuple[str, ...]] | None = None,
        label_skew: Mapping[str, float] | None = None,
        vocabularies: Vocabularies | None = None,
    ) -> "StreamManifest":
        """Return the manifest of files that have been written."""
        return cls(
            arrow_schema=encode_schema(schema),
            columns={field.name: str(field.type) for field in schema},
            compression=compression,
            rows=sum(file.rows for file in files),
            order=order_digest([file.rows for file in files]),
            files=files,
            labels=dict(labels or {}),
            label_skew=dict(label_skew or {}),
            vocabularies=dict(vocabularies or {}),
        )

    @classmethod
    def parse(cls, text: bytes, where: str) -> "StreamManifest":
        """Return the manifest from its JSON text.

        Raises:
            DataError: it is not a manifest, or has a version that is not known here.
        """
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            foreign = format_of_index(text)
            if foreign is not None:
                raise DataError(told(where, foreign)) from None
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise DataError(
                f"{where} is not a manifest of format version {VERSION}: {place}: {first['msg']}. "
                "Write the data set again with `raytrain-plus data write`. If the file belongs to "
                "another tool, name the data files with a pattern such as 'FOLDER/*.parquet'."
            ) from error
        try:
            names = manifest.schema.names
        except (ValueError, OSError, pa.ArrowException) as error:
            raise DataError(f"{where} has no schema that can be read: {error}") from error
        if set(names) != set(manifest.columns):
            raise DataError(f"{where} names other columns than its schema: write it again.")
        if manifest.rows != sum(file.rows for file in manifest.files):
            raise DataError(
                f"{where} says that there are {manifest.rows} rows, but its files have "
                f"{sum(file.rows for file in manifest.files)}: write the data set again."
            )
        return manifest

    def dump(self) -> bytes:
        """Return the manifest as JSON."""
        optional = ("labels", "label_skew", "vocabularies")
        empty = {name for name in optional if not getattr(self, name)}
        described = self.model_dump(mode="json", exclude=empty)
        return json.dumps(described, indent=1).encode()

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of every file, with the names of labels as metadata."""
        return with_names(decode_schema(self.arrow_schema), self.labels)

    @property
    def stored_bytes(self) -> int:
        """The stored size of all files."""
        return sum(file.stored_bytes for file in self.files)

    @property
    def raw_bytes(self) -> int:
        """The decompressed size of all files."""
        return sum(file.raw_bytes for file in self.files)


def encode_schema(schema: pa.Schema) -> str:
    """Return an Arrow schema as text: serialized by Arrow, in base64."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def decode_schema(text: str) -> pa.Schema:
    """Return the schema that `encode_schema` wrote.

    Raises:
        ValueError, pa.ArrowException: the text is damaged.
    """
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def order_digest(rows: list[int]) -> str:
    """Return a digest of the places of some rows in a fixed order.

    Args:
        rows: the rows of each file.
    """
    digest = hashlib.sha256()
    if any(rows):
        order = Order(rows=rows, lanes=_LANES, seed=_SEED, window=PINNED_WINDOW)
        for lane in range(order.lanes):
            length = order.lane_rows(lane)
            for epoch in (0, 1):
                for start in (0, max(0, length - _PINNED_ROWS)):
                    stop = min(length, start + _PINNED_ROWS)
                    for part in order.locate(epoch, lane, start, stop):
                        digest.update(np.ascontiguousarray(part, "<i8").tobytes())
    return digest.hexdigest()
