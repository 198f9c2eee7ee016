"""A GPT on packed rows of tokens."""

from dataclasses import dataclass

import torch
from torch import nn

from raytrain_plus import Task
from raytrain_plus.models.gpt import GPT
from raytrain_plus.schedules import cosine, with_warmup

CONTEXT = 128  # tokens that the model looks at; rows have one more


@dataclass
class Language(Task):
    lr: float = 3e-3
    vocabulary_size: int = 1024  # data of a larger tokenizer is refused before the run
    layers: int = 3
    width: int = 96
    heads: int = 4

    columns = {"input_ids": (CONTEXT + 1,)}
    tokens = (
        "input_ids"  # so that the run counts tokens: tokens per second, `--duration 5000000tok`
    )

    def model(self):
        return GPT(self.vocabulary_size, CONTEXT, self.layers, self.width, self.heads)

    def optimizer(self, model):
        matrices = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others}]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.99), weight_decay=0.0)

    def schedule(self, progress):
        return with_warmup(progress, 0.1, cosine)

    def forward(self, model, batch):
        return model(batch["input_ids"][:, :-1])

    def loss(self, outputs, batch):  # one loss per row: the mean over its tokens
        targets = batch["input_ids"][:, 1:].long()
        losses = nn.functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
        return losses.mean(dim=1)

    evaluate_loss = True  # the same on the test documents, as `evaluation_loss`
