"""The adapters learn the sample, and nothing else changes, in plain PyTorch: `pytest`."""

import torch

import prepare_data
from task import FineTune, LoRA


def test_only_the_adapters_and_norms_learn(tmp_path):
    base = tmp_path / "base.safetensors"
    prepare_data.train_base(base, steps=10, files=3)
    torch.manual_seed(0)
    rows = prepare_data.rows_of(prepare_data.docstrings(prepare_data.LIBRARY[:3]))
    batch = {"tokens": torch.from_numpy(rows[:16].copy())}
    task = FineTune(weights=str(base))
    model = task.model()
    assert sum(isinstance(module, LoRA) for module in model.modules()) == 4
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = task.optimizer(model)
    means = []
    for _ in range(20):
        losses = task.loss(task.forward(model, batch), batch)
        assert losses.shape == (len(batch["tokens"]),)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        means.append(losses.mean().item())
    assert means[-1] < means[0] - 0.05
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
