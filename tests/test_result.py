"""The result of an ended run for its caller."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from raytrain_plus import trainer
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.elastic.client.following import Ended
from raytrain_plus.elastic.protocol.messages import ElasticConfig, Outcome
from raytrain_plus.redaction import redact
from raytrain_plus.storage.store import Store

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
