"""Names the formats of other tools, and says how to move their data into a stream."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_POINTER = b"version https://git-lfs.github.com/spec/"

_LOOP = "for row in {reader}: writer.write(row)"


@dataclass(frozen=True)
class Format:
    """A format of another tool.

    Attributes:
        name: a description, such as "a WebDataset (tar files)".
        way: a line of Python that writes its rows with a StreamWriter, or how to convert it to a
            form that is read here; nothing if `data write` reads it.
    """

    name: str
    way: str


def _rows(name: str, reader: str) -> Format:
    return Format(name, _LOOP.format(reader=reader))


MDS = Format("an MDS data set (MosaicML Streaming)", "")
LITDATA = Format("a LitData data set", "")
_NUMPY = Format(
    "NumPy's arrays",
    "for x, y in zip(np.load('x.npy'), np.load('y.npy')): writer.write({'x': x, 'y': y})",
)
_TORCH = Format(
    "what torch.save has written",
    "load it where you trust it (torch.load, weights_only=True), then "
    "for x, y in zip(xs, ys): writer.write({'x': x, 'y': y})",
)
_MEDIA = Format(
    "sound or films",
    "for path, label in files: writer.write({'data': path.read_bytes(), 'label': label})",
)
_TEXT = _rows("plain text", "({'text': line} for line in open(FILE))")
_EXCEL = Format("a spreadsheet", "writer.write(pandas.read_excel(FILE))")
_SUFFIXES = {
    ".mds": MDS,
    ".tfrecord": _rows(
        "TFRecord files",
        "tf.data.TFRecordDataset(FILES).map(lambda r: tf.io.parse_single_example(r, "
        "{'x': tf.io.FixedLenFeature([], tf.int64)})).as_numpy_iterator()",
    ),
    ".h5": Format(
        "an HDF5 file",
        "for x, y in zip(h5py.File(FILE)['x'], h5py.File(FILE)['y']): "
        "writer.write({'x': x, 'y': y})",
    ),
    ".npy": _NUMPY,
    ".pkl": Format(
        "a pickle, which may run any code when it is loaded",
        "load it where you trust it, then for row in rows: writer.write(row)",
    ),
    ".pt": _TORCH,
    ".orc": Format("an ORC file", "writer.write(pyarrow.orc.read_table(FILE))"),
    ".avro": _rows("an Avro file", "fastavro.reader(open(FILE, 'rb'))"),
    ".xlsx": _EXCEL,
    ".sqlite": _rows("an SQLite database", "map(dict, connection.execute('select * from t'))"),
    ".mdb": Format(
        "an LMDB database",
        "for _, value in env.begin().cursor(): writer.write({'data': value})",
    ),
    ".beton": Format("an FFCV data set", "write the data that it was made of"),
    ".rec": Format(
        "MXNet's RecordIO",
        "for key in keys: writer.write({'record': mxnet.recordio.MXIndexedRecordIO("
        "INDEX, FILE, 'r').read_idx(key)})",
    ),
    ".mat": Format("a MATLAB file", "read it with scipy.io.loadmat, and write its rows"),
    ".safetensors": Format("tensors of safetensors", "read them, and write their rows"),
    ".wav": _MEDIA,
    ".txt": _TEXT,
    ".zip": Format("an archive", "unpack it, and name the folder"),
}
_SUFFIXES |= {
    other: _SUFFIXES[known]
    for known, others in {
        ".tfrecord": (".tfrecords",),
        ".h5": (".hdf5", ".hdf"),
        ".npy": (".npz",),
        ".pkl": (".pickle", ".p"),
        ".pt": (".pth", ".ckpt"),
        ".xlsx": (".xls", ".ods"),
        ".sqlite": (".sqlite3", ".db"),
        ".wav": (".mp3", ".flac", ".ogg", ".mp4", ".avi", ".mkv", ".webm"),
        ".zip": (".7z", ".rar"),
    }.items()
    for other in others
}
_DELTA = Format(
    "a Delta Lake table",
    "for batch in deltalake.DeltaTable(FOLDER).to_pyarrow_dataset().to_batches(): "
    "writer.write(batch)",
)
_ICEBERG = Format(
    "an Iceberg table",
    "for batch in table.scan().to_arrow_batch_reader(): writer.write(batch)  (pyiceberg)",
)
_HUDI = Format("a Hudi table", "write the table that Spark reads from it as Parquet")
_LANCE = Format(
    "a Lance data set",
    "for batch in lance.dataset(FOLDER).to_batches(): writer.write(batch)",
)
_ZARR = Format(
    "a Zarr array",
    "for x, y in zip(zarr.open(FOLDER)['x'], zarr.open(FOLDER)['y']): "
    "writer.write({'x': x, 'y': y})",
)


def format_of_index(text: bytes) -> Format | None:
    """Return the format to which an `index.json` belongs, if it is that of another tool."""
    try:
        index = json.loads(text)
    except ValueError:
        return None
    if not isinstance(index, dict):
        return None
    if isinstance(index.get("shards"), list):
        return MDS
    return LITDATA if isinstance(index.get("chunks"), list) else None


def format_of_table(paths: Iterable[str]) -> Format | None:
    """Return the table format of a folder, if its files alone are not the data.

    A log or a manifest of such a table says which of its files are part of it.

    Args:
        paths: the paths of all files in the folder, relative to it, also of hidden ones.
    """
    for path in map(PurePosixPath, paths):
        parents = set(path.parts[:-1])
        if "_delta_log" in parents and path.suffix == ".json":
            return _DELTA
        if "metadata" in parents and path.name.endswith(".metadata.json"):
            return _ICEBERG
        if ".hoodie" in parents:
            return _HUDI
        if "_versions" in parents and path.suffix == ".manifest":
            return _LANCE
        if path.name in (".zarray", ".zgroup", ".zattrs", ".zmetadata", "zarr.json"):
            return _ZARR
    return None


def format_of_files(paths: Iterable[str]) -> Format | None:
    """Return the format of the first file whose suffix is that of another tool."""
    found = (_SUFFIXES.get(PurePosixPath(path).suffix.lower()) for path in paths)
    return next((one for one in found if one is not None), None)


def is_pointer(head: bytes) -> bool:
    """Say whether the first bytes of a file are those of a Git LFS pointer."""
    return head.startswith(_POINTER)


def told_of_pointer(where: str) -> str:
    """Return the error message for a Git LFS pointer."""
    return (
        f"{where} is not the data, but a Git LFS pointer to it: run `git lfs pull` in its "
        "repository."
    )


def told(where: str, found: Format) -> str:
    """Return the error message for data of another format."""
    if not found.way:
        return (
            f"{where} is {found.name}, which cannot be trained on directly: make a stream of its "
            "folder with `raytrain-plus data write FOLDER NEW_PLACE`, and train on that."
        )
    return (
        f"{where} is {found.name}, which is not read here. Move it into a stream:\n"
        "    from raytrain_plus import StreamWriter\n"
        f"    with StreamWriter(NEW_PLACE) as writer:\n        {found.way}"
    )
