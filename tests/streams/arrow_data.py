"""Arrow data for the tests of streams: each supported type, in each form in which it may come."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

N = 11


def fixed_list(values, *sizes):
    kind = pa.from_numpy_dtype(values.dtype)
    for size in sizes:
        kind = pa.list_(kind, size)
    return pa.array(values.tolist(), kind)


def tensors(values, **options):
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), values.shape[1:], **options)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), int(values[0].size))
    return pa.ExtensionArray.from_storage(kind, flat)


def every_type():
    """Return name -> (Arrow array, NumPy array) for each supported kind of column."""
    draw = np.random.default_rng(0)
    columns = {}
    for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        dtype = np.dtype(kind)
        values = draw.integers(0, 100, N).astype(dtype)
        if dtype.kind != "f":
            values[:2] = np.iinfo(dtype).min, np.iinfo(dtype).max
        columns[dtype.name] = pa.array(values), values
    flags = draw.integers(0, 2, N).astype(bool)
    columns["bool"] = pa.array(flags), flags
    flag_lists = draw.integers(0, 2, (N, 3)).astype(bool)
    columns["bool lists"] = fixed_list(flag_lists, 3), flag_lists
    lists = draw.normal(size=(N, 3)).astype("f4")
    columns["lists"] = fixed_list(lists, 3), lists
    nested = draw.integers(0, 99, (N, 3, 2)).astype("i2")
    columns["nested.lists"] = fixed_list(nested, 2, 3), nested
    images = draw.integers(0, 255, (N, 3, 4, 2)).astype("u1")
    columns["tensors"] = tensors(images), images
    named = draw.normal(size=(N, 2, 3))
    columns["named tensors"] = tensors(named, dim_names=["y", "x"], permutation=[0, 1]), named
    return columns


def table_of(columns):
    return pa.table({name: arrow for name, (arrow, _) in columns.items()})


def write_ipc(table, path, *, rows=None, compression=None, stream=False):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def write_folder(table, path, lengths, suffix=".arrow"):
    path.mkdir()
    start = 0
    for number, length in enumerate(lengths):
        part = table.slice(start, length)
        start += length
        file = path / f"{number:03}{suffix}"
        if suffix == ".parquet":
            pq.write_table(part, file)
        else:
            write_ipc(part, file)
    return path


def as_is(table, _):
    return table


def as_slice_of_chunks(table, _):
    return pa.concat_tables([table.slice(5), table.slice(0, 4), table.slice(4)]).slice(N - 5)


def as_mapped_file(table, folder):
    return write_ipc(table, folder / "a.arrow")


def as_compressed_batches(table, folder):
    return str(write_ipc(table, folder / "a.feather", rows=4, compression="zstd"))


def as_stream(table, folder):
    return write_ipc(table, folder / "a.arrow", rows=4, stream=True).as_uri()


def as_parquet(table, folder):
    pq.write_table(table, folder / "a b.parquet", row_group_size=4)
    return (folder / "a b.parquet").as_uri()


def as_folder(table, folder):
    return write_folder(table, folder / "data", [4, 0, 6, 1])


def as_parquet_folder(table, folder):
    return write_folder(table, folder / "data", [4, 0, 6, 1], ".parquet")


def gather(source, name, order=None):
    """Gather rows by their index among all rows; by default all rows."""
    places = np.arange(source.total_rows) if order is None else np.array(order, np.int64)
    ends = np.cumsum(source.rows)
    files = np.searchsorted(ends, places, side="right")
    rows = places - (ends - source.rows)[files]
    column = source.columns[name]
    out = np.empty((len(places), *column.shape), column.dtype)
    source.gather(files, rows, name, out)
    return out
