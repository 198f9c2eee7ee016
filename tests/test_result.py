"""The result of an ended run for its caller."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
import torch

from raytrain_plus import trainer
from raytrain_plus.checkpoint import checkpointer, train_snapshot
from raytrain_plus.checkpoint.retention import Retention
from raytrain_plus.checkpoint.snapshot import layout_of
from raytrain_plus.elastic.client.following import Ended
from raytrain_plus.elastic.protocol.messages import ElasticConfig, Outcome
from raytrain_plus.inference.trained_model import find_model
from raytrain_plus.observe.stored_journal import StoredJournal
from raytrain_plus.redaction import redact
from raytrain_plus.storage.store import Store
from raytrain_plus.training.state import Replica
from tests.training.small_tasks import Plain

OUTCOME = Outcome(state="finished", steps=7, digest="d", loss=0.5, metrics={"accuracy": 0.75})


def ended(**changes):
    return Ended(replace(OUTCOME, **changes), {"folder": "/runs/run"})


def test_a_metric_of_the_task_does_not_replace_the_runs_own_values():
    metrics = {"accuracy": 0.75, "loss": 0.25, "steps": 3.0, "digest": 1.0}
    told = trainer.result_of(ended(metrics=metrics)).metrics
    assert {key: told[key] for key in ("loss", "steps", "digest")} == {
        "loss": 0.5,
        "steps": 7,
        "digest": "d",
    }
    assert {key: told[f"evaluation_{key}"] for key in ("loss", "steps", "digest")} == {
        "loss": 0.25,
        "steps": 3.0,
        "digest": 1.0,
    }
    # The control: another metric is found under its own name.
    assert told["accuracy"] == 0.75
    assert trainer.result_of(ended()).metrics.keys() == {"loss", "steps", "digest", "accuracy"}


@pytest.mark.parametrize(
    "storage", ["s3://key:hunter22@host/bucket/runs", "s3://bucket/runs?token=hunter22", "/runs"]
)
def test_the_live_result_knows_the_address_that_the_journal_does_not_hold(storage):
    store = Store(storage)
    place = store.inside(checkpointer.name_of(7))
    true = str(place.local_path) if place.is_local else place.url
    spec = SimpleNamespace(elastic=ElasticConfig(), checkpoint_store=store)
    assert trainer._with_secrets(redact(true), 7, spec) == true
    # The control: an address without a secret is shown unchanged.
    elsewhere = f"/tmp/kept/{checkpointer.name_of(7)}"
    assert trainer._with_secrets(elsewhere, 8, spec) == elsewhere


METRICS = {10: 0.25, 20: 0.75, 30: 0.5}


@pytest.fixture
def stored(tmp_path):
    """A run's folder with three checkpoints, listed as the coordinator does."""
    store = Store(tmp_path / "run")
    for step, accuracy in METRICS.items():
        replica = Replica.build(Plain(), 17, torch.device("cpu"))
        replica.step = step
        place = store.inside(checkpointer.name_of(step))
        snapshot = checkpointer.Snapshot.of(replica)
        files = checkpointer.write_share(place, snapshot, layout_of(snapshot, 1))
        header = {"run": "run", "metrics": {"accuracy": accuracy}}
        described = checkpointer.describe_state(snapshot)
        checkpointer.commit(place, {**header, **described}, files)
    return store


def listed(store, retention):
    content = train_snapshot.dump(checkpointer.kept(store), retention, ray.__version__)
    store.write(train_snapshot.FILE_NAME, content)
    return ray.train.Result.from_path(str(store.local_path))


def test_ray_train_opens_the_folder_of_the_checkpoints(stored):
    found = listed(stored, Retention(score_attribute="accuracy"))
    assert [metrics["steps"] for _, metrics in found.best_checkpoints] == [10, 30, 20]
    assert found.metrics == {"accuracy": 0.5, "steps": 30}
    assert Path(found.checkpoint.path).name == checkpointer.name_of(30)
    best = found.get_best_checkpoint("accuracy", "max")
    assert Path(best.path).name == checkpointer.name_of(20)
    assert list(found.metrics_dataframe["accuracy"]) == [0.25, 0.5, 0.75]


def test_the_result_knows_evaluations_that_ended_after_their_checkpoint(stored):
    later = [
        replace(one, metrics={"accuracy": 1.0 / one.step}) for one in checkpointer.kept(stored)
    ]
    content = train_snapshot.dump(later, Retention(), ray.__version__)
    stored.write(train_snapshot.FILE_NAME, content)
    place = str(stored.inside(checkpointer.name_of(30)).location)
    spec = SimpleNamespace(
        checkpoint_store=stored,
        retention=Retention(score_attribute="accuracy"),
        elastic=ElasticConfig(),
    )
    _, found = trainer._checkpoints(replace(OUTCOME, checkpoint=place, steps=30), spec)
    assert [metrics["accuracy"] for _, metrics in found] == [1 / 30, 1 / 20, 1 / 10]
    stored.delete(train_snapshot.FILE_NAME)
    _, found = trainer._checkpoints(replace(OUTCOME, checkpoint=place, steps=30), spec)
    assert [metrics["accuracy"] for _, metrics in found] == [0.25, 0.5, 0.75]  # of the manifests


def test_the_best_of_a_run_in_an_object_store_is_that_of_its_own_evaluation(stored, tmp_path):
    """Its manifests lack the metrics of evaluations that ended after them."""
    url = f"memory://{tmp_path}/run"
    store = Store(url)
    for path in stored.paths():
        folder, _, name = path.rpartition("/")
        store.inside(folder).write(name, stored.inside(folder).read(name))

    def best():
        return find_model(url, storage="", checkpoint="best:accuracy").step

    assert best() == 20  # the control: of the manifests
    later = [replace(one, metrics={"accuracy": -one.step}) for one in checkpointer.kept(store)]
    store.write(train_snapshot.FILE_NAME, train_snapshot.dump(later, Retention(), ray.__version__))
    assert best() == 10
    StoredJournal(store).write("evaluate", step=30, metrics={"accuracy": 0.9})
    assert best() == 30


def test_a_list_that_names_a_deleted_checkpoint_would_not_open(stored):
    """The control: why the list is written before a checkpoint is deleted."""
    listed(stored, Retention())
    stored.inside(checkpointer.name_of(10)).clear()
    with pytest.raises(ray.train.v2._internal.exceptions.CheckpointManagerInitializationError):
        ray.train.Result.from_path(str(stored.local_path))


def test_a_result_has_all_checkpoints_that_are_kept(stored):
    last = stored.inside(checkpointer.name_of(30))
    result = trainer.result_of(ended(checkpoint=str(last.local_path)))
    assert [metrics["steps"] for _, metrics in result.best_checkpoints] == [10, 20, 30]
    assert list(result.metrics_dataframe["accuracy"]) == [0.25, 0.75, 0.5]
    assert result.checkpoint.path == result.best_checkpoints[-1][0].path
    assert trainer.result_of(ended()).best_checkpoints == []
