"""Samples of rows and texts are equal at any number of workers, and change no bit of a run."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from ray.train import RunConfig, ScalingConfig
from torch import nn

from raytrain_plus import ElasticTrainer, Task
from raytrain_plus.algorithms import EMA, Samples, Step, Training, Weave
from raytrain_plus.algorithms.samples import _image_of, _Words, chooser, png
from raytrain_plus.observe import journal
from raytrain_plus.observe.report.history import read_history
from raytrain_plus.observe.report.page import page_of
from raytrain_plus.streams.opening import open_source
from raytrain_plus.task import TaskError
from raytrain_plus.training.evaluation import Evaluation
from tests.training.test_evaluation import CLOCK, Collect, GatheredError, cut


class Pictures(Task):
    """Images of 6 x 6; its forward draws, and counts its calls."""

    columns = {"image": (1, 6, 6), "label": ()}  # noqa: RUF012 - a constant of the class

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")

    def forward(self, model, batch):
        return nn.functional.dropout(model(batch["image"]), 0.2, training=True)

    def generate(self, model, prompt, length, choose):
        logits = model[1].weight.sum(1)
        return prompt + "".join("abc"[choose(logits)] for _ in range(length))


def data(n, seed):
    drawn = np.random.default_rng(seed)
    images = drawn.random((n, 1, 6, 6), np.float32)
    return pa.table(
        {
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
            "label": drawn.integers(0, 3, n),
        }
    )


SETS = {"near": data(20, 1), "far": data(9, 2)}


def run(folder, name, *samples, **more):
    ElasticTrainer(
        task=Pictures(),
        data=data(64, 0),
        evaluation_data=SETS,
        batch_size=16,
        duration="4ba",
        evaluate_every="2ba",
        logical_ranks=4,
        algorithms=[EMA(half_life="1ba"), *samples],
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name=name, storage_path=str(folder)),
        **more,
    ).fit(lambda _: None)
    events = journal.read(folder / name)
    digest = events[-1]["digest"]
    return digest, [event for event in events if event["event"] == "evaluate"]


def test_a_run_shows_samples_and_keeps_its_bits(tmp_path):
    plain, before = run(tmp_path, "plain")
    samples = Samples(rows=2, first=7, prompts=("x", "y"), length=8, temperature=1.0)
    digest, found = run(tmp_path, "shown", samples)
    assert digest == plain
    assert [one["metrics"] for one in found] == [one["metrics"] for one in before]
    assert not any("samples" in one for one in before)
    shown = found[-1]["samples"]
    assert [(one.get("set"), one.get("row")) for one in shown] == [
        ("near", "7"), ("near", "8"), (None, None), (None, None), ("far", "7"), ("far", "8"),
    ]  # fmt: skip
    assert [one["label"] for one in shown if "row" in one] == [
        str(SETS[name]["label"][row].as_py()) for name in ("near", "far") for row in (7, 8)
    ]
    assert all(one["prediction"].endswith("%)") for one in shown if "row" in one)
    texts = [one["text"] for one in shown if "prompt" in one]
    assert [text[0] for text in texts] == ["x", "y"]
    assert texts[0][1:] != texts[1][1:]  # a seed for each prompt
    picture = Image.open(tmp_path / "shown" / shown[0]["image"])
    pixels = SETS["near"]["image"][7].as_py()
    assert np.array_equal(np.array(picture).reshape(-1), np.round(np.float32(pixels) * 255))
    page = page_of(read_history(journal.read(tmp_path / "shown")), 0.0)
    assert f'src="{shown[0]["image"]}"' in page
    assert texts[0] in page


def test_a_task_that_writes_no_text_is_named():
    class Mute(Pictures):
        generate = Task.generate

    with pytest.raises(TaskError, match=r"Mute does not define generate\(model, prompt"):
        Mute().generate(None, "x", 1, int)


def test_tokens_are_chosen_by_probability_and_seed():
    logits = torch.tensor([0.0, 3.0, 1.0])
    greedy = chooser(0.0, torch.Generator())
    assert [greedy(logits) for _ in range(3)] == [1, 1, 1]
    drawn = [
        [choose(logits) for _ in range(40)]
        for choose in (chooser(2.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("value", "mode", "first"),
    [
        (torch.full((3, 5, 4), 255, dtype=torch.uint8), "RGB", (255, 255, 255)),
        (torch.zeros(5, 4, 3), "RGB", (0, 0, 0)),
        (torch.linspace(-2, 2, 20).view(1, 5, 4), "L", 0),
        (torch.full((5, 4), 200, dtype=torch.uint8), "L", 200),
    ],
)
def test_images_of_any_layout_are_written(value, mode, first):
    content, ending = _image_of({"x": torch.ones(1, 7), "image": value[None]}, None, 0)
    picture = Image.open(io.BytesIO(content))
    assert (ending, picture.mode, picture.size) == (".png", mode, (4, 5))
    assert picture.getpixel((0, 0)) == first


def test_files_of_images_are_kept_as_they_are_and_other_columns_are_none():
    content = png(torch.zeros(4, 4, 3, dtype=torch.uint8))
    assert _image_of({"file": [content]}, None, 0) == (content, ".png")
    assert _image_of({"file": [b"text"], "x": torch.ones(1, 2, 3, 4)}, None, 0) == (b"", "")
    assert _image_of({"file": [content]}, "", 0) == (b"", "")


def test_predictions_are_said_in_words():
    words = _Words(("cat", "dog"), is_class=True)
    assert words.of(torch.tensor([0.0, 100.0])) == "dog (100%)"
    assert words.of(torch.tensor(0)) == "cat"
    assert words.of_row({"label": torch.tensor([1]), "p": torch.tensor([0.25])}, 0) == (
        "label dog, p 0.25"
    )
    numbers = _Words((), is_class=False)
    assert numbers.of(torch.arange(6) / 4) == "[0, 0.25, 0.5, 0.75, ...]"
    assert numbers.of(float("nan")) == "nan"


def shown(cuts, *algorithms):
    """Return what each worker of an evaluation shows, and the bytes that it sends."""
    task, found, sent = Pictures(), [], []
    ranges = cut(4, *cuts)
    for index in range(len(ranges)):
        source = open_source(SETS["near"], list(task.columns))
        torch.manual_seed(1)
        model = task.model()
        training = Training(
            model=model,
            optimizer=task.optimizer(model),
            clock=CLOCK,
            seed=3,
            folder=Path("/dev/null"),
        )
        step = Step(training, 8)
        evaluation = Evaluation(task, source, source.plain_order(4), 8, 3)
        torch.manual_seed(index)  # what was drawn before on this worker
        with pytest.raises(GatheredError) as collected:
            evaluation.run(step, Weave(algorithms), ranges, Collect(index), set_name="near")
        sent.append(collected.value.args[0])
        found.append(step.evaluation.shown)
    return found, sent


def test_samples_are_equal_on_any_number_of_workers():
    samples = Samples(rows=3, prompts=("x",), temperature=1.0)
    (one,), sent = shown((), samples)
    assert len(one) == 4
    assert "image" not in one[0]  # no file can be written there
    for cuts in ((2,), (1, 3)):
        assert all(other == one for other in shown(cuts, samples)[0])
        assert shown(cuts, samples)[1] == shown(cuts)[1]
    assert shown(())[1] == sent
    assert shown((), Samples(rows=3, first=1))[0][0] != one[:3]  # the control
