"""Train a LightningModule as it is, and load its best weights back into the plain module.

    pip install 'raytrain-plus[lightning,tensorboard]' scikit-learn
    python lightning_module.py                 # in this process
    python lightning_module.py --workers 2     # on two workers, to the same bits

The data are scikit-learn's 1,797 handwritten digits of 8x8 pixels.

It takes about 20 seconds. The best checkpoint has the accuracy that was measured:

    best val_accuracy 0.9944, digest f272502c852406a3
    the plain module: 0.9944
"""

import argparse

import pyarrow as pa
import ray.train
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

from raytrain_plus import ElasticTrainer
from raytrain_plus.integrations.lightning import LightningTask
from raytrain_plus.loggers import TensorBoardLogger


class Digits(LightningModule):
    def __init__(self, width=32, rate=0.1, steps=200):
        super().__init__()
        self.rate, self.steps = rate, steps
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * width, 10),
        )  # fmt: skip

    def training_step(self, batch, batch_idx):
        image, label = batch
        outputs = self.net(image)
        loss = nn.functional.cross_entropy(outputs, label)
        self.log("train_accuracy", (outputs.argmax(1) == label).float().mean())
        return loss

    def validation_step(self, batch, batch_idx):
        image, label = batch
        self.log("val_accuracy", (self.net(image).argmax(1) == label).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def tables():
    """Return the digits to train on, and every fifth one to validate."""
    digits = load_digits()
    images = (digits.data.reshape(-1, 1, 8, 8) / 8 - 1).astype("float32")

    def table(chosen):
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(images[chosen])
        return pa.table({"image": column, "label": digits.target[chosen]})

    held_out = torch.arange(len(images)).numpy() % 5 == 0
    return table(~held_out), table(held_out)


def main(arguments=None):
    options = argparse.ArgumentParser()
    options.add_argument("--workers", type=int, default=0, help="0: in this process")
    options.add_argument("--steps", type=int, default=200)
    given = options.parse_args(arguments)
    train, validation = tables()
    settings = {"rate": 0.1, "steps": given.steps}
    result = ElasticTrainer(
        task=LightningTask(Digits, columns=("image", "label"), **settings),
        data=train,
        evaluation_data=validation,
        batch_size=64,
        duration=f"{given.steps}ba",
        loggers=[TensorBoardLogger()],
        scaling_config=ray.train.ScalingConfig(num_workers=given.workers),
        run_config=ray.train.RunConfig(
            storage_path="runs",
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="val_accuracy"
            ),
        ),
    ).fit()
    best, metrics = result.best_checkpoints[-1]
    print(
        f"best val_accuracy {metrics['val_accuracy']:.4f}, digest {result.metrics['digest'][:16]}"
    )

    module = Digits(**settings)
    module.load_state_dict(load_file(f"{best.path}/model.safetensors"))
    module.eval()
    with torch.no_grad():
        images = torch.tensor(validation["image"].combine_chunks().to_numpy_ndarray())
        found = module.net(images).argmax(1).numpy() == validation["label"].to_numpy()
    print(f"the plain module: {found.mean():.4f}")
    print(f"curves: tensorboard --logdir {result.path}/tensorboard")


if __name__ == "__main__":
    main()
