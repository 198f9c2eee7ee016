"""Seeded faults strike the real coordinator on virtual time; no schedule may change the result."""

import numpy as np
import pytest

from tests.scale import cluster, worker
from tests.scale.simulation import Simulation, simulate


def found_in(seeds, **options):
    return {seed: found.broken for seed in seeds if (found := simulate(seed, **options)).broken}


def test_every_schedule_ends_with_the_undisturbed_result_or_a_documented_error():
    verdicts = [simulate(seed) for seed in range(120)]
    assert {v.seed: v.broken for v in verdicts if v.broken} == {}
    assert sum(v.struck for v in verdicts) > len(verdicts)  # the faults did strike
    assert sum(v.ending == "finished" for v in verdicts) > len(verdicts) * 0.9


@pytest.mark.parametrize("seed", [198, 253])
def test_a_coordinator_that_was_replaced_and_then_fails_leaves_the_workers_alone(seed):
    assert simulate(seed).broken == []


@pytest.mark.parametrize("seed", [793, 973])
def test_a_coordinator_that_was_replaced_does_not_write_the_lines_that_had_to_wait(seed):
    assert simulate(seed).broken == []


def test_an_evaluation_is_not_accepted_before_its_step():
    assert simulate(1853).broken == []


@pytest.mark.parametrize("seed", [2391, 2690, 2765])
def test_the_journal_says_which_steps_it_lacks(seed):
    found = simulate(seed)
    assert found.broken == []
    assert any("journal: warning" in line for line in found.lines)


def test_a_seed_replays_with_the_same_events():
    first, again, other = simulate(11), simulate(11), simulate(12)
    assert first.lines == again.lines
    assert first.lines != other.lines


def test_64_workers_under_faults_keep_their_bits():
    verdicts = [simulate(seed, size=64) for seed in range(2)]
    assert [one.broken for one in verdicts] == [[], []]
    assert all(one.struck >= 4 for one in verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 2000])
def test_thousands_of_workers_under_faults_keep_their_bits(size):
    found = simulate(17, size=size)
    assert found.broken == []
    assert found.ending == "finished"
    assert found.struck >= 4


def test_the_judge_sees_a_sum_that_is_rounded_otherwise(monkeypatch):
    def rounded(mine, other, is_left):  # noqa: ARG001
        np.add(mine, other * np.float32(1.0000001), out=mine)

    monkeypatch.setattr(worker, "add", rounded)
    assert "other bits" in str(found_in([3], faults=False))


def test_the_judge_sees_a_loss_that_is_not_the_one_of_the_step(monkeypatch):
    tell_steps = cluster.Cluster.tell_steps

    def wrong(self, sender, generation, records):
        for record in records:
            if record.step == 3 and record.loss is not None:
                object.__setattr__(record, "loss", record.loss + 1)
        tell_steps(self, sender, generation, records)

    monkeypatch.setattr(cluster.Cluster, "tell_steps", wrong)
    assert "other losses" in str(found_in([3], faults=False))


def test_the_judge_sees_a_plan_that_skips_a_step(monkeypatch):
    train = worker.Worker.train

    def skip(self, plan):
        train(self, plan)
        if plan.generation == 1:
            self.step += 1

    monkeypatch.setattr(worker.Worker, "train", skip)
    assert found_in([3], faults=False)


def test_the_judge_sees_nothing_without_faults(tmp_path):
    assert Simulation(3, tmp_path, faults=False).run().broken == []
