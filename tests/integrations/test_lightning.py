"""A LightningModule trains as it is, with equal bits; what cannot work is named before the run."""

import pyarrow as pa
import pytest
import ray.train
import torch
from torch import nn
from torch.nn import functional

from benchmarks.group import RANKS, Group, verdict
from raytrain_plus import ElasticTrainer
from raytrain_plus.task import TaskError
from tests.algorithms.side import forget, import_transformers
from tests.training.small_tasks import CLASSES, FEATURES, part

import_transformers()  # lightning stands next to it
lightning = pytest.importorskip("lightning.pytorch")
forget()

from raytrain_plus.integrations.lightning import LightningTask  # noqa: E402 - after its library

# xdist sends warnings to a process without lightning, and one of lightning's own would end it.
pytestmark = pytest.mark.filterwarnings("ignore")


class Lit(lightning.LightningModule):
    def __init__(self, hidden=8, gamma=0.5):  # noqa: ARG002
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, hidden), nn.Dropout(0.1), nn.Linear(hidden, CLASSES)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        del batch_idx
        x, y = batch
        loss = functional.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=True, prog_bar=True)
        return loss

    def validation_step(self, batch):
        x, y = batch
        outputs = self(x)
        self.log_dict(
            {
                "val/loss": functional.cross_entropy(outputs, y),
                "val/right": (outputs.argmax(1) == y).float().mean(),
            }
        )

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, self.hparams.gamma)]


COLUMNS = ("x", "label")


def test_a_module_has_equal_bits_anywhere():
    assert verdict(lambda: Group(lambda: LightningTask(Lit, COLUMNS), part), steps=1) == "equal"
    group = Group(lambda: LightningTask(Lit, COLUMNS, hidden=5), part)
    assert group.replica.scheduling.by_epoch  # as in Lightning
    assert group.replica.model.net[0].out_features == 5
    assert "net.0.weight" in group.replica.model.state_dict()


def test_it_is_the_function_of_lightnings_own_trainer():
    class Still(Lit):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    def make():
        made = Still()
        made.net[1].p = 0.0
        return made

    group = Group(lambda: LightningTask(make, COLUMNS), part)
    theirs = make()
    theirs.load_state_dict(group.replica.model.state_dict())
    group.run(3)
    rows = [
        [torch.cat([part(step, rank)[name] for rank in range(RANKS)]) for name in COLUMNS]
        for step in range(3)
    ]
    trainer = lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(theirs, torch.utils.data.DataLoader(rows, batch_size=None))
    for name, ours in group.replica.model.named_parameters():
        torch.testing.assert_close(ours, theirs.get_parameter(name))


def test_a_run_logs_and_evaluates(tmp_path):
    batch = part(0, 0)
    x = pa.FixedShapeTensorArray.from_numpy_ndarray(batch["x"].repeat(8, 1).numpy())
    table = pa.table({"x": x, "label": batch["label"].repeat(8).numpy()})
    result = ElasticTrainer(
        task=LightningTask(Lit, COLUMNS),
        data=table,
        evaluation_data=table,
        batch_size=8,
        logical_ranks=4,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name="lit", storage_path=str(tmp_path)),
    ).fit()
    assert 0 < result.metrics["val/loss"] < 10
    assert 0 <= result.metrics["val/right"] <= 1
    assert "train_loss" in result.return_value["logged"]


def test_it_predicts_by_the_modules_own_step_or_by_its_forward():
    class Labels(Lit):
        def predict_step(self, batch):
            return {"label": self(batch[0]).argmax(1)}

    batch = {"x": part(0, 0)["x"]}  # without labels
    for kind in (Lit, Labels):
        task = LightningTask(kind, COLUMNS)
        model = task.model().eval()
        logits = model(batch["x"])
        found = task.predict(model, batch)
        assert torch.equal(
            found if kind is Lit else found["label"], logits.argmax(1) if kind is Labels else logits
        )


class Manual(Lit):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        del batch_idx
        x, y = batch
        self.manual_backward(functional.cross_entropy(self(x), y))
        self.optimizers().step()


class Reading(Lit):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.trainer.max_epochs * self.current_epoch

    def on_train_epoch_end(self):
        self.all_gather(torch.ones(1))


class Both(Lit):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1)] * 2


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Manual, ["self.automatic_optimization", "self.manual_backward", "self.optimizers"]),
        (
            Reading,
            ["on_train_epoch_end()", "self.trainer", "self.current_epoch", "self.all_gather"],
        ),
        (nn.Linear, ["is no lightning.pytorch.LightningModule"]),
    ],
)
def test_what_cannot_work_is_named_when_the_task_is_made(module, words):
    with pytest.raises(TaskError) as caught:
        LightningTask(module)
    assert [word for word in words if word not in str(caught.value)] == []
    LightningTask(Lit)  # the control


def test_several_optimizers_and_logged_objects_are_refused():
    with pytest.raises(TaskError, match=r"2 optimizers \(SGD, SGD\)"):
        Group(lambda: LightningTask(Both, COLUMNS), part)

    class Logs(Lit):
        def training_step(self, batch, batch_idx):
            self.log("m", nn.Linear(1, 1))
            return super().training_step(batch, batch_idx)

    with pytest.raises(TaskError, match=r"self.log\('m'\) got a Linear"):
        Group(lambda: LightningTask(Logs, COLUMNS), part)
