"""The worker with the most steps gives the amount of training; advice costs are summed."""

import json
from dataclasses import replace

from raytrain_plus.elastic.coordinator.usage import Usage
from raytrain_plus.elastic.protocol.messages import ElasticConfig, Report


def report(samples, **costs):
    said = {
        name: {"seconds": seconds, "acted": acted, "idle": 1}
        for name, (seconds, acted) in costs.items()
    }
    return Report(
        ending="paused", step=1, committed_at=0.0, samples=samples, tokens=3 * samples, costs=said
    )


def test_costs_add_up_over_workers_and_generations():
    account = Usage()
    account.add({"w0": report(8, EMA=(0.5, 2), SAM=(1.0, 4)), "w1": report(6, EMA=(0.25, 1))})
    account.add({"w1": report(16, EMA=(0.25, 1))})
    account.add({})  # all were lost
    assert (account.samples, account.tokens) == (16, 48)
    assert account.costs == {
        "EMA": {"seconds": 1.0, "acted": 4, "idle": 3},
        "SAM": {"seconds": 1.0, "acted": 4, "idle": 1},
    }


def test_the_journal_has_the_time_and_traffic_of_workers_that_reported():
    one = replace(report(8), seconds={"compute": 1.5, "data": 0.25}, settled_at=100.0)
    two = replace(report(8), seconds={"compute": 2.0}, settled_at=101.0, traffic={"hits": 3})
    account = Usage()
    assert account.add({"w2": two, "w0": one}) == {
        "workers": ["w0", "w2"],
        "until": 101.0,
        "seconds": {"compute": 3.5, "data": 0.25},
        "traffic": {"hits": 3},
    }
    assert account.add({}) == {"workers": [], "until": 0.0, "seconds": {}, "traffic": {}}


def test_the_configuration_in_the_journal_has_no_secrets():
    elastic = ElasticConfig(checkpoint_options={"secret": "s3cr3t"}, hang_deadline=3.0)
    told = elastic.for_journal()
    assert "s3cr3t" not in json.dumps(told)
    assert (told["hang_deadline"], told["check_every"]) == (3.0, 10)
    assert "s3cr3t" not in str(elastic)
    assert "s3cr3t" in json.dumps(elastic.checkpoint_options)  # the control
