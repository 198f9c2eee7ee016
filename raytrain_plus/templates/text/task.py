"""Train a small GPT on text, byte by byte. Change its size in run.yaml, or the model here.

README.md says how to train on tokens instead.
"""

import math
from dataclasses import dataclass

import torch
import torchmetrics
from torch import nn

from raytrain_plus import Task
from raytrain_plus.models.gpt import GPT
from raytrain_plus.schedules import cosine, with_warmup

CONTEXT = 128  # bytes that the model looks at; prepare_data.py cuts the text to this length


@dataclass
class Text(Task):
    """The fields are settings: `task_settings` in run.yaml, or `--setting lr=0.001`."""

    lr: float = 3e-3
    vocabulary_size: int = 256  # bytes; data with larger token numbers is refused
    layers: int = 3
    width: int = 96
    heads: int = 4

    columns = {"tokens": (CONTEXT + 1,)}  # checked before any worker starts
    tokens = "tokens"  # so that a duration may be given in tokens: 10000000tok

    def model(self):
        return GPT(self.vocabulary_size, CONTEXT, self.layers, self.width, self.heads)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=self.lr, betas=(0.9, 0.99))

    def schedule(self, progress):  # a factor on the learning rate; progress goes from 0 to 1
        return with_warmup(progress, 0.1, cosine)

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

    def generate(self, model, prompt, length, choose):  # for --algorithm Samples:prompts=["def "]
        values = list(prompt.encode())
        for _ in range(length):
            logits = model(torch.tensor([values[-CONTEXT:]], device=model.head.weight.device))
            values.append(choose(logits[0, -1]))
        return bytes(values).decode(errors="replace")


def continued(model, text, length=200):
    """Return what a model writes after a text, one most probable byte after the other."""
    values = list(text.encode())
    model.eval()
    with torch.no_grad():
        for _ in range(length):
            logits = model(torch.tensor([values[-CONTEXT:]]))
            values.append(int(logits[0, -1].argmax()))
    return bytes(values).decode(errors="replace")
