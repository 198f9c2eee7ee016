"""The table of finished trials on disk."""

import math
import os
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.frontier.folder import SCHEMA, read_trials, record, to_table, write_trials
from raytrain_plus.frontier.points import PointError
from tests.frontier.spaces import SPACE, configs
from tests.frontier.test_points import finished

SECONDS = st.floats(1e-3, 1e6)
TRIALS = st.builds(
    lambda config, **said: finished(recipe=SPACE.recipe(config), **said),
    configs(),
    seed=st.integers(0, 2**62),
    cost=SECONDS,
    quality=st.floats(-1e9, 1e9),
    started=SECONDS,
    ended=SECONDS,
    aspect_costs=st.dictionaries(st.text(), SECONDS, max_size=3),
    parts=st.dictionaries(st.text(), SECONDS, max_size=3),
)


@settings(max_examples=30)
@given(trial=TRIALS)
def test_a_trial_is_read_as_it_was_written(tmp_path_factory, trial):
    path = record(trial, tmp_path_factory.mktemp("trials"))
    assert read_trials(path) == [trial]
    assert pq.read_schema(path).equals(SCHEMA)


def test_trials_are_collected_in_a_folder_and_then_in_one_file(tmp_path):
    folder = tmp_path / "trials"
    late = finished("a", ended=300.0)
    early = finished("b", ended=200.0, cost=1.0)
    lost = finished("c", ended=250.0, quality=math.nan, outcome="failed", error="Traceback ...")
    for trial in (late, early, lost, late):  # a second time changes nothing
        record(trial, folder)
    found = read_trials(folder)
    assert [trial.name for trial in found] == ["b", "c", "a"]
    assert [found[0], found[2]] == [early, late]
    assert (found[1].error, found[1].outcome) == ("Traceback ...", "failed")
    assert math.isnan(found[1].quality)
    write_trials(found, tmp_path / "all.parquet")
    assert [*map(repr, read_trials(tmp_path / "all.parquet"))] == [*map(repr, found)]


WRITER = """
import sys
from pathlib import Path
from tests.frontier.test_points import finished
from raytrain_plus.frontier.folder import record
for number in range(10_000):
    record(finished(f"t{number}", seed=number), Path(sys.argv[1]))
    print(number, flush=True)
"""


def test_a_kill_leaves_only_complete_trials(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "trials")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    told = [int(writer.stdout.readline()) for _ in range(20)][-1]
    writer.send_signal(signal.SIGKILL)
    told = max([told, *map(int, writer.communicate()[0].split())])
    found = {trial.seed for trial in read_trials(tmp_path / "trials")}
    assert found >= set(range(told + 1))
    assert found <= set(range(told + 2))
    # The negative control: a truncated file is noticed.
    cut = tmp_path / "trials" / "t3.parquet"
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(PointError, match=r"t3.parquet is no Parquet file"):
        read_trials(tmp_path / "trials")


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    path = record(finished("a", cost=1.0), tmp_path)

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        record(finished("a", cost=2.0), tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert [trial.cost for trial in read_trials(tmp_path)] == [1.0]


def test_a_file_that_is_not_a_table_of_trials_is_refused(tmp_path):
    with pytest.raises(PointError, match="there are no trials at"):
        read_trials(tmp_path / "nothing")
    newer = to_table([finished()]).replace_schema_metadata({"raytrain_plus.trials": "2"})
    pq.write_table(newer, tmp_path / "newer.parquet")
    with pytest.raises(PointError, match="trials of version 2; this program reads version 1"):
        read_trials(tmp_path / "newer.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(PointError, match="trials of version none"):
        read_trials(tmp_path / "other.parquet")
