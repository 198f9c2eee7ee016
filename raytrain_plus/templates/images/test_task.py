"""The task learns its sample, in plain PyTorch: `pytest`."""

import numpy as np
import torch

import prepare_data
from task import Images


def test_the_sample_is_learned():
    torch.manual_seed(0)
    _, rows = prepare_data.sample(rows=64)
    batch = {
        "image": torch.from_numpy(np.stack([image for image, _, _ in rows])),
        "label": torch.tensor([label for _, label, _ in rows]),
    }
    task = Images()
    model = task.model()
    optimizer = task.optimizer(model)
    means = []
    for _ in range(15):
        losses = task.loss(task.forward(model, batch), batch)
        assert losses.shape == (64,)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        means.append(losses.mean().item())
    assert means[-1] < means[0] * 0.85
