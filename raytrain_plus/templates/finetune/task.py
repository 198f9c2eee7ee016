"""Fine-tune a pretrained GPT with LoRA (Hu et al. 2021, arXiv 2106.09685): plain PyTorch.

Only the adapters and the norms are trained. Put your own model in place of `pretrained`, and the
names of its linear layers in place of ADAPTED.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torchmetrics
from safetensors.torch import load_file
from torch import nn

from raytrain_plus import Task
from raytrain_plus.models.gpt import GPT
from raytrain_plus.schedules import linear, with_warmup

CONTEXT = 64  # bytes that the model looks at
ADAPTED = ("qkv", "out")  # the attention's layers
HERE = Path(__file__).parent


class LoRA(nn.Module):
    """A frozen linear layer, plus a product of two small matrices that are trained."""

    def __init__(self, layer, rank):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / math.sqrt(rank))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))  # so it starts as the layer

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T


def pretrained(weights):
    """Return the model with its weights, as a safetensors file of yours has them."""
    model = GPT(vocabulary=256, context=CONTEXT, layers=2, width=64, heads=4)
    model.load_state_dict(load_file(weights))
    return model


def adapted(model, rank):
    """Freeze a model, and put adapters in it; its norms stay trainable."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)
        for name, child in list(module.named_children()):
            if name in ADAPTED and isinstance(child, nn.Linear):
                setattr(module, name, LoRA(child, rank))
    return model


@dataclass
class FineTune(Task):
    """The fields are settings: `task_settings` in run.yaml, or `--setting rank=16`."""

    lr: float = 5e-3
    rank: int = 8
    weights: str = "data/base.safetensors"  # all nodes must see it

    columns = {"tokens": (CONTEXT + 1,)}  # checked before any worker starts
    tokens = "tokens"  # so that a duration may be given in tokens: 10000000tok

    def model(self):
        return adapted(pretrained(HERE / self.weights), self.rank)

    def optimizer(self, model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=self.lr)

    def schedule(self, progress):  # a factor on the learning rate; progress goes from 0 to 1
        return with_warmup(progress, 0.1, linear)

    def forward(self, model, batch):
        return model(batch["tokens"][:, :-1])

    def loss(self, outputs, batch):  # one loss per sequence: the mean over its bytes
        return self.losses(outputs, batch).mean(dim=1)

    def losses(self, outputs, batch):
        targets = batch["tokens"][:, 1:].long()
        return nn.functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")

    def metrics(self):
        return {"bits_per_byte": torchmetrics.MeanMetric()}

    def update_metric(self, metric, outputs, batch):
        metric.update(self.losses(outputs, batch) / math.log(2))
