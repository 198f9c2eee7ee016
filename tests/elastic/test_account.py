"""What was trained is what the furthest worker says; what advice cost adds up."""

from raytrain_plus.elastic.account import Account
from raytrain_plus.elastic.messages import Report


def report(samples, **costs):
    said = {
        name: {"seconds": seconds, "acted": acted, "idle": 1}
        for name, (seconds, acted) in costs.items()
    }
    return Report(
        ending="paused", step=1, committed_at=0.0, samples=samples, tokens=3 * samples, costs=said
    )


def test_costs_add_up_over_workers_and_generations():
    account = Account()
    account.add([report(8, EMA=(0.5, 2), SAM=(1.0, 4)), report(6, EMA=(0.25, 1))])
    account.add([report(16, EMA=(0.25, 1))])
    account.add([])  # all were lost
    assert (account.samples, account.tokens) == (16, 48)
    assert account.costs == {
        "EMA": {"seconds": 1.0, "acted": 4, "idle": 3},
        "SAM": {"seconds": 1.0, "acted": 4, "idle": 1},
    }
