"""A trial that fails since the sweep ends is no result; one that fails by itself is."""

import queue
from types import SimpleNamespace

import pytest

from raytrain_plus.frontier import trials
from raytrain_plus.frontier.trials import RecipeTrial


class Trial(RecipeTrial):
    def __init__(self):
        self._told = queue.Queue()
        self._setting = SimpleNamespace(worker_pool="pool")
        self.recorded = []
        self._folder = SimpleNamespace(finish=self.recorded.append)
        self._finished = lambda _, error: SimpleNamespace(
            quality=0.0, outcome="failed", cost=0.0, error=error
        )
        self._stand = lambda *_: {}

    def _trainer(self):
        raise ValueError("there is no such actor")


@pytest.mark.parametrize("lives", [False, True])
def test_a_trial_counts_as_failed_only_while_the_worker_pool_lives(monkeypatch, lives):
    monkeypatch.setattr(trials, "lives", lambda _: lives)
    trial = Trial()
    trial._train()
    if lives:
        assert [one.error for one in trial.recorded] == ["ValueError: there is no such actor"]
        assert trial.step()["outcome"] == "failed"
    else:
        assert trial.recorded == []
        with pytest.raises(ValueError, match="no such actor"):
            trial.step()
