"""A run with workers whose whole folder is in an object store."""

import uuid

import pyarrow as pa
import pytest
from ray.train import RunConfig, ScalingConfig

from raytrain_plus import ElasticConfig, ElasticTrainer, Fault
from raytrain_plus.algorithms import Profile
from raytrain_plus.observe import journal
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.storage import staging
from raytrain_plus.storage.store import Store
from tests.test_local import DATA, Line

pytestmark = pytest.mark.timeout(300)


class Talks(Line):
    def loss(self, outputs, batch):
        print("a line of a worker")  # noqa: T201
        return super().loss(outputs, batch)


def train(storage, name, workers, **more):
    trainer = ElasticTrainer(
        task=Talks(),
        data=DATA,
        batch_size=16,
        duration="12ba",
        logical_ranks=4,
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.25}),
        run_config=RunConfig(name=name, storage_path=str(storage)),
        **more,
    )
    return trainer, trainer.fit(lambda _: None)


@pytest.mark.usefixtures("cluster")
def test_a_run_in_s3_loses_a_worker_and_its_coordinator_and_keeps_its_bits(server, tmp_path):
    name = f"run-{uuid.uuid4().hex[:8]}"
    url = f"s3://{server.fresh_bucket()}/runs"
    options = {"checkpoint_every": "4ba", "checkpoint_options": server.options()}
    faults = [Fault(step=4, action="kill"), Fault(step=8, action="kill_coordinator")]
    trainer, result = train(
        url,
        name,
        2,
        elastic=ElasticConfig(**options),
        faults=faults,
        algorithms=[Profile(steps=(2,))],
    )
    _, plain = train(tmp_path, name, 0)
    assert result.metrics["digest"] == plain.metrics["digest"]
    folder = Store(f"{url}/{name}", server.options())
    events = list(journal.each(journal_of(folder)))
    told = [(e["step"], e["loss_hex"]) for e in events if e["event"] == "step"]
    there = journal.each(journal_of(tmp_path / name), {"step"})
    assert told == [(e["step"], e["loss_hex"]) for e in there]
    assert [e["action"] for e in events if e["event"] == "fault"] == ["kill", "kill_coordinator"]
    assert any(e["event"] == "coordinator_restart" for e in events)
    logs = [path for path in folder.paths() if path.startswith("logs/")]
    assert {path.partition(".")[0] for path in logs} >= {"logs/w0", "logs/w1"}
    assert b"a line of a worker\n" in folder.find(logs[0])
    assert len([path for path in folder.paths() if path.startswith("traces/step_2.")]) == 2
    assert not staging.folder_of(trainer.spec.run_id).exists()
    data = [path for path in folder.paths() if path.endswith(".arrow")]
    with pa.ipc.open_file(folder.find(data[0])) as table:  # also for workers that come later
        assert table.read_all().equals(DATA)
