"""A trial's config changes a trainer's arguments, and a run's events become a trial's results."""

import pickle

import pytest
import ray.train

from raytrain_plus import ElasticConfig, ElasticTrainer, TrainingFailedError
from raytrain_plus.algorithms import EMA, LabelSmoothing
from raytrain_plus.configure import ConfigError
from raytrain_plus.trainable import Results, TrialResult, changed


def test_a_config_changes_arguments_and_what_mappings_name():
    before = {
        "task": "mine:Task",
        "task_settings": {"width": 8, "rate": 0.1},
        "batch_size": 64,
        "scaling_config": ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 3}),
    }
    config = {
        "task_settings": {"rate": 0.2},
        "train_loop_config": {"depth": 2},
        "batch_size": 32,
        "scaling_config": {"num_workers": 4},
        "elastic": {"spares": 1},
        "algorithms": ["LabelSmoothing:smoothing=0.2", EMA()],
    }
    found = changed(ElasticTrainer, before, config)
    assert found["task_settings"] == {"width": 8, "rate": 0.2, "depth": 2}
    assert (found["task"], found["batch_size"]) == ("mine:Task", 32)
    assert found["scaling_config"].num_workers == 4
    assert found["scaling_config"].resources_per_worker == {"CPU": 3}
    assert found["elastic"] == ElasticConfig(spares=1)
    assert found["algorithms"] == [LabelSmoothing(smoothing=0.2), EMA()]
    assert changed(ElasticTrainer, before, {}) == before
    assert before["task_settings"] == {"width": 8, "rate": 0.1}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"rate": 1}, r"sets 'rate', .* by task_settings=\{'rate': ...\}"),
        ({"batchsize": 1}, "Did you mean batch_size"),
        ({"run_config": None}, "sets run_config, which follows from the trial"),
        ({"scaling_config": {"workers": 1}}, "scaling_config .* has no field workers"),
    ],
)
def test_other_keys_are_refused_by_name(config, why):
    with pytest.raises(ConfigError, match=why):
        changed(ElasticTrainer, {"task": "mine:Task"}, config)


def step(number):
    return {"event": "step", "step": number, "loss": number / 10}


def evaluate(number, **metrics):
    return {"event": "evaluate", "step": number, "metrics": metrics}


def kept(number):
    return {"event": "checkpoint", "step": number, "folder": f"c{number}"}


def results(events, **more):
    made = Results(**{"total_steps": 8, "checkpoint_every": 4, "evaluates": True, **more})
    return [one for event in events for one in made.of(event)] + made.rest()


def result(number, checkpoint, **metrics):
    return TrialResult({"loss": number / 10, "steps": number, **metrics}, checkpoint)


def test_each_evaluation_is_one_result_with_the_checkpoint_of_its_step():
    events = [
        *(step(2), evaluate(2, a=1)),  # no checkpoint is due
        *(step(4), evaluate(4, **{"x/a": 1}), evaluate(4, **{"y/a": 2}), step(5), kept(5)),
        *(step(8), evaluate(8, loss=3), kept(4)),  # not of this step
        {"event": "checkpoint", "step": 8, "error": "full"},
        {"event": "end", "state": "finished", "step": 8, "loss": 0.8, "checkpoint": "c8"},
    ]
    assert results(events) == [
        result(2, None, a=1),
        result(4, "c5", **{"x/a": 1, "y/a": 2}),
        result(8, None, evaluation_loss=3),
    ]


def test_a_result_waits_at_most_until_the_next_evaluation_or_the_end():
    events = [step(4), evaluate(4, a=1), step(8), evaluate(8, a=2)]
    assert results(events) == [result(4, None, a=1), result(8, None, a=2)]
    end = {"event": "end", "state": "finished", "step": 8, "loss": 0.8, "checkpoint": "c8"}
    assert results([*events, end])[1] == result(8, "c8", a=2)
    at_once = results(events, checkpoint_every=None)
    assert at_once == [result(4, None, a=1), result(8, None, a=2)]


def test_a_run_without_evaluations_has_a_result_for_each_checkpoint():
    events = [step(4), kept(4), step(8), kept(8)]
    end = {"event": "end", "state": "finished", "step": 8, "loss": 0.8, "checkpoint": "c8"}
    both = [result(4, "c4"), result(8, "c8")]
    assert results([*events, end], evaluates=False) == both
    assert results([*events[:3], end], evaluates=False) == both
    assert results([*events[:2], {**end, "state": "stopped"}], evaluates=False) == both[:1]


def test_the_error_of_a_trial_reaches_the_driver():
    error = pickle.loads(pickle.dumps(TrainingFailedError("it failed", {"run": "a"})))
    assert (str(error), error.summary) == ("it failed", {"run": "a"})
