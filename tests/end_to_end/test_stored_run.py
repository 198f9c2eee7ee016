"""A run whose folder is in an object store: all of it is there, and it goes on after any end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ray.train import RunConfig, ScalingConfig
from typer.testing import CliRunner

from raytrain_plus import ElasticConfig, ElasticTrainer
from raytrain_plus.cli.commands import app
from raytrain_plus.loggers import CSVLogger
from raytrain_plus.observe import journal
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.storage import ownership
from raytrain_plus.storage.ownership import OwnedError
from raytrain_plus.storage.store import Store
from tests.streams.s3_server import KEY, SECRET
from tests.test_local import DATA

STEPS = 12
TASK = """
import time
from pathlib import Path
import torch
from torch import nn
from raytrain_plus import Task

def allowed():
    try:
        return int((Path(__file__).parent / "hold").read_text() or "0")
    except FileNotFoundError:
        return 1 << 30

class Slow(Task):
    target = "y"

    def model(self):
        return nn.Linear(1, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def forward(self, model, batch):
        self.forwards = getattr(self, "forwards", 0) + 1
        while self.forwards >= allowed():
            time.sleep(0.01)
        return model(batch["x"].unsqueeze(1)).squeeze(1)

    def loss(self, outputs, batch):
        return (outputs - batch["y"]) ** 2
"""
KILLED = """
import json, os, signal, sys
from tests.end_to_end.test_stored_run import trainer

def watch(events):
    if any(e["event"] == "checkpoint" and e["step"] == 3 for e in events):
        print("killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

trainer(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])).fit(watch)
"""


def trainer(task, storage, options=None, **more):
    return ElasticTrainer(
        task=str(task),
        data=DATA,
        batch_size=16,
        duration=f"{STEPS}ba",
        logical_ranks=4,
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name="run", storage_path=str(storage)),
        elastic=ElasticConfig(checkpoint_every="3ba", checkpoint_options=options or {}),
        **more,
    )


def steps_of(folder):
    return [(e["step"], e["loss_hex"]) for e in journal.each(journal_of(folder), {"step"})]


@pytest.fixture
def environment(server, monkeypatch):
    """What commands on other machines have: no options."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def command(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1]) if done.stdout else done.stderr


@pytest.mark.usefixtures("environment")
def test_a_run_in_s3_that_was_killed_goes_on_elsewhere_to_the_same_bits(
    tmp_path, server, monkeypatch
):
    (tmp_path / "slow.py").write_text(TASK)
    (tmp_path / "hold").write_text("32")  # forwards before the task waits
    task, url = f"{tmp_path}/slow.py:Slow", f"s3://{server.fresh_bucket()}/runs"
    code = [sys.executable, "-c", KILLED, task, url, json.dumps(server.options())]
    root = Path(__file__).parents[2]
    done = subprocess.run(code, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, "killed" in done.stdout) == (-9, True), done.stderr
    monkeypatch.chdir(tmp_path)
    status = command("status", f"{url}/run", "--once")[1]
    assert (status["state"], status["folder"]) == ("unreachable", f"{url}/run")
    assert 3 <= status["step"] < STEPS
    (tmp_path / "hold").unlink()
    plain = trainer(task, tmp_path / "plain").fit(lambda _: None)
    monkeypatch.setattr(ownership, "_GRACE", 0.1)
    (tmp_path / "hold").write_text("1")
    resumed = trainer(task, url, server.options(), resume=True, loggers=[CSVLogger()])
    refused = []

    def try_another(_):
        if not refused:
            with pytest.raises(OwnedError, match=r"the run in s3://.* lives") as told:
                trainer(task, url, server.options(), resume=True)
            refused.append(told)
            (tmp_path / "hold").unlink()

    result = resumed.fit(try_another)
    assert refused
    assert result.metrics["digest"] == plain.metrics["digest"]
    assert steps_of(Store(f"{url}/run")) == steps_of(Path(plain.path))
    assert result.path == f"{url}/run"
    _check_folder(Store(f"{url}/run"), url, tmp_path)


def _check_folder(folder, url, tmp_path):
    """All of the run is in its folder, no secret is, and commands find it there."""
    assert command("verify", f"{url}/run", tmp_path / "plain" / "run")[1]["equal"]
    assert command("report", "run", "--storage", url)[1]["page"] == f"{url}/run/report.html"
    assert command("attach", "run", "--storage", url)[1]["state"] == "finished"
    assert command("status", "other", "--storage", url)[0] == 2
    files = folder.paths()
    tops = {path.split("/")[0] for path in files}
    assert tops >= {"journal", "owners", "loggers", "run.yaml", "report.html", "metrics.csv"}
    assert "checkpoint_manager_snapshot.json" in tops
    assert f"checkpoint_{STEPS:08d}" in tops
    alive = [path for path in files if path.endswith(".alive")]
    assert alive == ["owners/00000001.alive", "owners/00000002.alive"]  # of the killed process
    contents = [folder.find(path) for path in files]
    assert any(b"checkpoint_every" in content for content in contents)  # the control
    assert not any(SECRET.encode() in content for content in contents)
    assert f"storage: {url}".encode() in folder.find("run.yaml")
