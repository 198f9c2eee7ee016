"""Workers train on the data that the driver has opened, or not at all."""

import contextlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain_plus.elastic.worker.data import open_data, open_evaluations
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.opening import open_source
from raytrain_plus.task import Task
from tests.elastic.scripted_pool import make_spec


def written(path, rows):
    pq.write_table(pa.table({"x": [float(i) for i in range(rows)]}), path)
    return str(path)


def test_another_file_of_the_same_name_is_refused(tmp_path):
    place = written(tmp_path / "digits.parquet", 64)
    meant = open_source(place).identity
    run = tmp_path / "run"
    run.mkdir()
    identity = {"data content": meant, "evaluation data": meant}
    spec = make_spec(run, data=place, evaluation_data=place, identity=identity)
    assert open_data(spec, Task())[0].identity == meant
    with contextlib.ExitStack() as closing:
        assert list(open_evaluations(spec, Task(), closing)) == [""]
    written(tmp_path / "digits.parquet", 65)
    with pytest.raises(DataError, match=r"digits\.parquet on node .* is other data"):
        open_data(spec, Task())
    with pytest.raises(DataError, match=r"digits\.parquet on node .* is other data"):
        open_evaluations(spec, Task(), contextlib.ExitStack())


def test_a_table_that_the_driver_stored_for_the_workers_is_unchanged(tmp_path):
    place = written(tmp_path / "train.arrow", 64)
    spec = make_spec(tmp_path, data=place, identity={"data content": "a table's"})
    open_data(spec, Task())
