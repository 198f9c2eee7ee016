"""Aspects in runs of real workers: join points, costs, warnings, disturbed recipes."""

import pytest
from ray.train import RunConfig, ScalingConfig

from benchmarks import one_process
from raytrain_plus import ElasticConfig, ElasticTrainer, Fault
from raytrain_plus.algorithms import Factorize, LabelSmoothing, SelectiveBackprop
from raytrain_plus.checkpoint.export import export
from raytrain_plus.frontier.recipe import read_recipe
from raytrain_plus.observe import journal
from raytrain_plus.reference.byte_gpt import ByteGPT
from raytrain_plus.reference.cluttered_digits import ClutteredDigits
from raytrain_plus.task import load_task
from tests.algorithms.test_join_points import listed, nested
from tests.end_to_end.recorder import Recorder
from tests.end_to_end.runs import train
from tests.end_to_end.tasks import Momentum

RANKS = 6


def test_a_run_has_the_join_points_in_the_order_of_the_docstring(storage):
    file = storage / "recorded"
    run = train(Momentum(), storage, logical_ranks=4, steps=20, aspects=[Recorder(file=file)])
    assert run.error == ""
    lines = [line.split() for line in file.read_text().splitlines()]
    last = [i for i, (point, _, number, _) in enumerate(lines) if (point, number) == ("step", "19")]
    # The probe comes first; one part represents all parts.
    seen = [lines[0], *(line for line in lines[last[0] :] if line[3] in ("-1", "0"))]
    # An epoch has many steps, and `fit` ends where a plain model is exported.
    longer = ("epoch begins", "epoch ends", "fit ends")
    names = [f"{point} {what}" for point, what, _, _ in seen]
    assert [n for n in names if n not in longer] == [n for n in nested(listed()) if n not in longer]


def test_a_summary_says_what_was_trained_on_and_what_aspects_cost(storage):
    trainer = ElasticTrainer(
        task="raytrain_plus.reference.byte_gpt:ByteGPT",
        task_settings={"layers": 1, "width": 8, "heads": 2},
        algorithms=[
            SelectiveBackprop(keep=0.5, start="0dur", finish="1dur", interval=1),
            Factorize(),
        ],
        batch_size=32,
        logical_ranks=4,
        duration=f"{32 * 65 * 10}tok",
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.25}),
        run_config=RunConfig(name="accounts", storage_path=str(storage)),
        elastic=ElasticConfig(audit_every=0),  # each audit computes one more part
    )
    summary = trainer.fit().return_value
    assert summary["steps"] == 10
    assert summary["samples"] == {"loaded": 320, "trained": 160}
    assert summary["tokens"] == {"loaded": 320 * 65, "trained": 160 * 65}
    cost = summary["algorithms"]["SelectiveBackprop"]
    assert cost["acted"] == 10 * 4
    assert 0 < cost["seconds"] < summary["device_seconds"]
    (warning,) = [e for e in journal.read(storage / "accounts") if e["event"] == "warning"]
    assert "Factorize changed nothing in GPT" in warning["text"]  # two workers, one warning


@pytest.mark.parametrize(
    ("task", "recipe", "steps"),
    [
        pytest.param(ClutteredDigits, "cluttered_digits/hot", 40, marks=pytest.mark.slow),
        pytest.param(ByteGPT, "byte_gpt/hot", 40, marks=pytest.mark.slow),
    ],
)
def test_a_recipe_through_a_kill_and_a_grow_has_the_bits_of_one_worker(
    task, recipe, steps, storage
):
    said = read_recipe(recipe)
    batch_size = RANKS * 4
    short = said.model_copy(update={"duration": f"{steps}ba", "batch_size": batch_size})
    expected = one_process.train(task(), short, logical_ranks=RANKS)
    name = f"disturbed-{task.__name__}"
    result = ElasticTrainer(
        task=f"{task.__module__}:{task.__name__}",
        task_settings=said.task,
        algorithms=said.aspects(),
        batch_size=batch_size,
        logical_ranks=RANKS,
        duration=f"{steps}ba",
        evaluate_every="1dur",
        scaling_config=ScalingConfig(num_workers=(2, 3), resources_per_worker={"CPU": 0.25}),
        run_config=RunConfig(name=name, storage_path=str(storage)),
        faults=[Fault(step=10, action="kill"), Fault(step=25, action="kill", phase="backward")],
    ).fit()
    summary = result.return_value
    assert summary["digest"] == expected.digest
    assert len(summary["generations"]) > 1
    assert summary["metrics"] == pytest.approx(expected.metrics)
    plain = export(load_task(task(), said.task), storage / name / f"checkpoint_{steps:08d}")
    assert plain.state_dict().keys() == task().model().state_dict().keys()


def test_other_bits_would_be_noticed():
    """The negative control: one setting is slightly different."""
    recipe = read_recipe("cluttered_digits/baseline")
    short = recipe.model_copy(update={"duration": "3ba", "batch_size": 24})
    aspects = {"LabelSmoothing": {"smoothing": 0.1}}, {"LabelSmoothing": {"smoothing": 0.1000001}}
    digests = {
        one_process.train(
            ClutteredDigits(), short.model_copy(update={"algorithms": one}), logical_ranks=RANKS
        ).digest
        for one in aspects
    }
    assert len(digests) == 2
    assert LabelSmoothing(**aspects[0]["LabelSmoothing"]).smoothing == 0.1
