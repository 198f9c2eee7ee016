"""Names of labels: the class that each number of a column means.

A number alone is ambiguous: `owls` is 2 next to cats and dogs, and 1 next to cats only. So a stream
keeps the names with its columns, and data with other names is refused.
"""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raytrain_plus.streams.columns import DataError, array_shapes, listed

Labels = Mapping[str, Sequence[str]]
"""Column -> the name of each number, from 0."""

_MOST_NAMES = 100_000


def labels_of(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Return the names of Hugging Face's `ClassLabel` columns in a file's metadata."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told["info"]["features"]
        return {
            str(name): tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def with_names(schema: pa.Schema, labels: Labels) -> pa.Schema:
    """Return a schema with the names of labels in its metadata, in Hugging Face's form."""
    features = {
        name: {"names": list(names), "_type": "ClassLabel"}
        for name, names in labels.items()
        if name in schema.names
    }
    if not features:
        return schema
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return schema.with_metadata({**(schema.metadata or {}), **told})


def only_known_features(schema: pa.Schema) -> pa.Schema:
    """Return a schema with no metadata but names of labels and shapes of Hugging Face's arrays."""
    shapes, labels = array_shapes(schema), labels_of(schema)
    features = {
        **{name: {"names": names, "_type": "ClassLabel"} for name, names in labels.items()},
        **{
            name: {"shape": [None if n < 0 else n for n in shape], "_type": f"Array{len(shape)}D"}
            for name, shape in shapes.items()
        },
    }
    plain = schema.remove_metadata()
    if not features:
        return plain
    told = json.dumps({"info": {"features": features}}).encode()
    return plain.with_metadata({b"huggingface": told})


def check_same(one: Labels, other: Labels, first: str, second: str) -> None:
    """Compare the names of two data sets in the columns that both have.

    Args:
        one: the names of the first data set.
        other: the names of the second data set.
        first: the name of the first data set in an error.
        second: the name of the second data set in an error.

    Raises:
        DataError: a number means different names.
    """
    for column in sorted(one.keys() & other.keys()):
        here, there = tuple(one[column]), tuple(other[column])
        if here == there:
            continue
        raise DataError(
            f"column {column!r} has other labels in {second} than in {first}: "
            f"{_first_difference(here, there)}. Write both with the same names: `raytrain-plus "
            "data write SOURCE PLACE --labels-from STREAM`."
        )


def numbers_of(
    texts: pa.ChunkedArray, names: Sequence[str]
) -> tuple[pa.ChunkedArray | None, int, str]:
    """Return the numbers of names; or None, with the first row of an unknown name and that name."""
    numbers = pc.index_in(texts, pa.array(names, pa.string()))
    if numbers.null_count:
        row = pc.is_null(numbers).combine_chunks().index(True).as_py()
        return None, row, str(texts[row].as_py())
    return numbers.cast(pa.int64()), 0, ""


def check_names(names: Sequence[str], column: str) -> tuple[str, ...]:
    """Return the names of a column's labels.

    Raises:
        DataError: there are none or too many, or one exists twice.
    """
    is_names = not isinstance(names, str) and all(isinstance(name, str) for name in names)
    if not is_names or not names or len(set(names)) < len(names):
        raise DataError(
            f"the labels of column {column!r} are {listed(names)}, but must be a list of different "
            "names (texts)."
        )
    if len(names) > _MOST_NAMES:
        raise DataError(
            f"column {column!r} has {len(names):,} labels; at most {_MOST_NAMES:,} are kept: is it "
            "a column of labels?"
        )
    return tuple(map(str, names))


def check_distinct(names: Iterable[str], where: str) -> None:
    """Check that no two names of labels that were found in data look the same.

    Args:
        names: of the labels.
        where: what has them, as in "column 'label'".

    Raises:
        DataError: two differ only in spaces around them, or in how Unicode composes a letter.
    """
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(unicodedata.normalize("NFC", name).strip(), name)
        if other != name:
            raise DataError(
                f"{where}: the labels {other!a} and {name!a} look the same, but would become two "
                "classes: write both in one way."
            )


def _first_difference(here: Sequence[str], there: Sequence[str]) -> str:
    for number, (one, other) in enumerate(zip(here, there, strict=False)):
        if one != other:
            return f"{number} is {other!r} there and {one!r} here"
    return f"it has {len(there)} names there and {len(here)} here"
