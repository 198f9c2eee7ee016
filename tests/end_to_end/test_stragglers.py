"""A slow worker gets fewer logical ranks, and gets them back; the bits stay the same."""

import time
from pathlib import Path

import pytest

from raytrain_plus.algorithms import Aspect
from tests.end_to_end.runs import UNHURRIED, Script, at_step, differences, train, undisturbed
from tests.end_to_end.tasks import Plain, is_first

REBALANCED = {"kind": "rebalanced"}

RANKS = 8
STEPS = 400

pytestmark = pytest.mark.timeout(300)


class Slow(Aspect):
    """Make one worker slow at each part, while there is a file `slow`.

    Attributes:
        folder: the folder of the file, and of the marker of the slow worker.
        seconds: extra seconds for each part.
    """

    folder: Path
    seconds: float

    def batch(self, _step):
        began = time.perf_counter()
        yield
        slow = (self.folder / "slow").exists() and self.is_it()
        # The others take some time, too, so that other programs matter little in comparison.
        until = began + self.seconds * (4 if slow else 1)
        time.sleep(max(0.0, until - time.perf_counter()))

    def is_it(self):
        global _is_it  # noqa: PLW0603 - an aspect is settings; this is about the process
        if _is_it is None:
            _is_it = is_first(self.folder / "slow-one")
        return _is_it


_is_it = None


def shared(event):
    return dict(zip(event["members"], event["ranks"], strict=True))


def rebalanced(times):
    return lambda events: sum(REBALANCED in e.get("causes", ()) for e in events) >= times


def slowed(storage, folder, seconds, **options):
    """Return a run of two workers, one of which is slow."""
    (folder / "slow").touch()
    return train(
        Plain(),
        storage,
        logical_ranks=RANKS,
        workers=(2, 2),
        wanted={1: 2},
        aspects=[Slow(folder=folder, seconds=seconds)],
        **UNHURRIED,
        **options,
    )


@pytest.mark.slow
def test_a_slow_worker_gets_fewer_ranks_and_gets_them_back(storage, tmp_path):
    run = slowed(
        storage,
        tmp_path,
        0.01,
        director=Script(
            (rebalanced(1), lambda _: (tmp_path / "slow").unlink()),
            (rebalanced(2), lambda name: (storage / name / "hurry").touch()),
        ),
        steps=STEPS,
    )
    assert differences(run, undisturbed(Plain, RANKS, steps=STEPS)) == []
    first, *others = run.of("generation")
    assert set(shared(first).values()) == {4}
    assert all(REBALANCED in e["causes"] for e in others)
    assert min(shared(others[0]).values()) <= 2
    assert set(shared(others[-1]).values()) == {4}
    assert len(others) <= 4, "it does not oscillate"
    assert run.changed == set()


@pytest.mark.slow
def test_without_the_threshold_no_ranks_are_moved(storage, tmp_path):
    run = slowed(storage, tmp_path, 0.005, steps=100, rebalance_above=None)
    assert not at_step(101)(run.events)
    assert len(run.of("generation")) == 1
