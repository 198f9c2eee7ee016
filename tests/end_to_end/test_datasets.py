"""A map-style dataset goes to workers, and its random rows are the same on any number of them."""

import torch
from ray.train import RunConfig, ScalingConfig
from torch import nn

from raytrain_plus import ElasticConfig, ElasticTrainer, MapDataset, Task


class Noisy(torch.utils.data.Dataset):
    """Rows with noise from torch's global generator, as augmented images have it."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return torch.tensor([i / 64]) + 0.01 * torch.rand(1), torch.tensor(i / 32)


class Dropping(Task):
    """Draws from the same generator while it trains."""

    def model(self):
        return nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def forward(self, model, batch):
        return model(batch["input"]).squeeze(1)

    def loss(self, outputs, batch):
        return (outputs - batch["label"]) ** 2


def digest(storage, data, workers, **more):
    made = ElasticTrainer(
        task=Dropping(),
        data=data,
        batch_size=16,
        logical_ranks=4,
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name=f"run-{workers}-{len(more)}", storage_path=str(storage)),
        elastic=ElasticConfig(checkpoint_every=None),
        **more,
    )
    return made.fit(lambda _: None).metrics["digest"]


def test_random_rows_have_the_same_bits_in_one_process_and_on_workers(cluster, storage):  # noqa: ARG001
    alone = digest(storage, Noisy(), 0)
    assert digest(storage, MapDataset(Noisy()), 2) == alone
    assert digest(storage, Noisy(), 0, seed=18) != alone  # negative control
