"""The task learns its sample, in plain PyTorch: `pytest`."""

import torch

import prepare_data
from task import CONTEXT, Text, continued


def test_the_sample_is_learned():
    torch.manual_seed(0)
    rows = prepare_data.rows_of([prepare_data.sample()[0].read_bytes()])
    batch = {"tokens": torch.from_numpy(rows[:8].copy())}
    task = Text(layers=1, width=32)
    model = task.model()
    optimizer = task.optimizer(model)
    means = []
    for _ in range(20):
        losses = task.loss(task.forward(model, batch), batch)
        assert losses.shape == (8,)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        means.append(losses.mean().item())
    assert means[-1] < means[0] * 0.8
    assert continued(model, "def ", length=5).startswith("def ")


def test_no_byte_is_lost():
    text = bytes(range(256)) * 4
    rows = prepare_data.rows_of([text])
    joined = b"".join(row[:CONTEXT].tobytes() for row in rows)
    assert text.startswith(joined)
    assert len(text) - len(joined) <= CONTEXT
