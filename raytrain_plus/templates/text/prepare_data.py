"""Write data/train.parquet and data/evaluation.parquet: rows of CONTEXT + 1 bytes.

python prepare_data.py                  a small sample: sources of Python's standard library
python prepare_data.py BOOKS/*.txt      your own text files
"""

import sys
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from task import CONTEXT

DATA = Path(__file__).parent / "data"
SEPARATOR = b"\0"  # between files


def sample():
    """Return the files of the sample."""
    return sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]


def rows_of(texts):
    """Cut texts into rows; each row's last byte is the next row's first."""
    values = np.frombuffer(SEPARATOR.join(texts), np.uint8)
    starts = np.arange((len(values) - 1) // CONTEXT)[:, None] * CONTEXT
    return values[starts + np.arange(CONTEXT + 1)]


def write(paths, data=DATA):
    """Write the last tenth of each file as evaluation data, and the rest as training data."""
    data.mkdir(exist_ok=True)
    texts = [path.read_bytes() for path in paths]
    cut = [len(text) * 9 // 10 for text in texts]
    for name, parts in (
        ("train", [text[:at] for text, at in zip(texts, cut, strict=True)]),
        ("evaluation", [text[at:] for text, at in zip(texts, cut, strict=True)]),
    ):
        rows = rows_of(parts)
        tokens = pa.FixedSizeListArray.from_arrays(rows.reshape(-1), CONTEXT + 1)
        pq.write_table(pa.table({"tokens": tokens}), data / f"{name}.parquet")
        print(f"wrote {data / name}.parquet: {len(rows)} rows")


def main(*names):
    write([Path(name) for name in names] or sample())


if __name__ == "__main__":
    main(*sys.argv[1:])
