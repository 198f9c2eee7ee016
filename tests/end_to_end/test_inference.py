"""Workers that evaluate and predict may be killed, and their number changes no bit."""

import pyarrow.parquet as pq

import raytrain_plus
from raytrain_plus.inference import predict as predicting
from tests.inference.tasks import NAME, trained_run


def test_a_killed_worker_and_the_number_of_workers_change_nothing(tmp_path, cluster, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr(predicting, "_LEAST_ROWS", 128)  # so that there are several parts
    folder = trained_run(tmp_path)
    run, rows = folder / "run", folder / "rows.parquet"
    how = {"keep": ["id"], "batch_size": 16}
    here = raytrain_plus.predict(NAME, run, rows, **how)
    mark = tmp_path / "kill"
    mark.write_text("700")
    out = raytrain_plus.predict(
        NAME, run, rows, folder / "out", num_workers=2, task_settings={"kill_at": str(mark)}, **how
    )
    assert not mark.exists()  # a worker was killed
    assert pq.read_table(out).equals(here)
    found = raytrain_plus.evaluate(NAME, run, num_workers=2)
    assert found == raytrain_plus.evaluate(NAME, run)
