"""Makes two Parquet files of scikit-learn's digits, and the buckets for the run."""

# ruff: noqa: T201 - a command
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
import sklearn.datasets

HELD_OUT = 297

found = sklearn.datasets.load_digits()
image = pa.FixedSizeListArray.from_arrays(found.data.astype("float32").reshape(-1), 64)
table = pa.table({"image": image, "label": found.target})
pq.write_table(table.slice(HELD_OUT), "digits.parquet")
pq.write_table(table.slice(0, HELD_OUT), "held.parquet")

files = s3fs.S3FileSystem()
for bucket in ("data", "kept"):
    files.makedirs(bucket, exist_ok=True)
print("ready")
