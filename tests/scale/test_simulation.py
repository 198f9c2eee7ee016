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


def test_a_seed_replays_with_the_same_events():
    first, again, other = simulate(11), simulate(11), simulate(12)
    assert first.lines == again.lines
    assert first.lines != other.lines


def test_64_workers_under_faults_keep_their_bits():
    assert found_in(range(4), size=64) == {}


def test_the_judge_sees_a_sum_in_another_order(monkeypatch):
    def other_order(mine, other, is_left):  # noqa: ARG001
        np.add(mine, other * np.float32(1.0000001), out=mine)

    monkeypatch.setattr(worker, "add", other_order)
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
