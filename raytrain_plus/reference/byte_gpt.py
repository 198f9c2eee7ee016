"""A byte-level language model of the source of Python's own standard library."""

import hashlib
import math
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional

from raytrain_plus.models.gpt import GPT
from raytrain_plus.schedules import SCHEDULES, with_warmup
from raytrain_plus.task import Batch, Task

CONTEXT = 64
_HELD_OUT = 10  # every tenth file, by a hash of its path
_TEST_ROWS = 3000
_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
_SEPARATOR = b"\0"  # between files


@dataclass(frozen=True, kw_only=True)
class ByteGPT(Task):
    """Predict the next byte. Metric: `bits_per_byte`, lower is better.

    The defaults are those of the tuned baseline (`python -m benchmarks.baselines text`).

    Attributes:
        learning_rate: highest learning rate of AdamW.
        beta2, weight_decay: of AdamW; embeddings, norms and biases do not decay.
        schedule_name: `constant`, `linear` or `cosine`, after a warm-up.
        warmup: the part of the run during which the learning rate rises.
        layers, width, heads: size of the transformer.
    """

    columns = {"tokens": (CONTEXT + 1,)}  # noqa: RUF012 - a constant of the class
    tokens = "tokens"

    learning_rate: float = 6.7e-3
    beta2: float = 0.99
    weight_decay: float = 0.107
    schedule_name: str = "linear"
    warmup: float = 0.2
    layers: int = 3
    width: int = 96
    heads: int = 4

    def model(self) -> nn.Module:
        """About 0.4 million parameters."""
        return GPT(
            vocabulary=256,
            context=CONTEXT,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW (Loshchilov 2017, arXiv 1711.05101)."""
        named = dict(model.named_parameters())
        decays = [p for n, p in named.items() if p.ndim > 1 and n.startswith("blocks")]
        others = [p for n, p in named.items() if p.ndim == 1 or not n.startswith("blocks")]
        groups: list[dict[str, Any]] = [{"params": decays}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            groups,
            lr=self.learning_rate,
            betas=(0.9, self.beta2),
            weight_decay=self.weight_decay,
        )

    def schedule(self, progress: float) -> float:
        """Warm up, then decline to a tenth."""
        decline = SCHEDULES[self.schedule_name]
        return with_warmup(progress, self.warmup, lambda p: 0.1 + 0.9 * decline(p))

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits (n, T, 256) for the bytes after the first T."""
        logits: Tensor = model(batch["tokens"][:, :-1])
        return logits

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy of each sequence, in nats per byte."""
        return _losses(outputs, batch).mean(dim=1)

    def metrics(self) -> dict[str, torchmetrics.Metric]:
        """Bits per byte over all held-out sequences."""
        return {"bits_per_byte": torchmetrics.MeanMetric()}

    def update_metric(self, metric: torchmetrics.Metric, outputs: Any, batch: Batch) -> None:
        """Feed every byte's cross entropy, in bits."""
        metric.update(_losses(outputs.float(), batch) / math.log(2))

    def generate(
        self, model: nn.Module, prompt: str, length: int, choose: Callable[[Tensor], int]
    ) -> str:
        """Write on, byte by byte."""
        values = list(prompt.encode())
        device = next(model.parameters()).device
        for _ in range(length):
            logits = model(torch.tensor([values[-CONTEXT:]], device=device))
            values.append(choose(logits[0, -1]))
        return bytes(values).decode(errors="replace")

    def data(self) -> pa.Table:
        """Nine tenths of the files."""
        return source()["train"]

    def evaluation_data(self) -> pa.Table:
        """3,000 sequences, spread over the held-out files."""
        return source()["test"]


def _losses(outputs: Tensor, batch: Batch) -> Tensor:
    targets = batch["tokens"][:, 1:].long()
    losses = functional.cross_entropy(
        outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1), reduction="none"
    )
    return losses.view(targets.shape)


@cache
def source() -> Mapping[str, pa.Table]:
    """Return the sequences, `train` and `test`: `tokens` uint8 of shape (65,).

    The split is by file, so no part of a held-out file is trained on. The bytes are those of the
    running Python, and differ a little between its releases.
    """
    texts: dict[str, list[bytes]] = {"train": [], "test": []}
    for name, text in _files():
        held_out = int(hashlib.sha256(name.encode()).hexdigest(), 16) % _HELD_OUT == 0
        texts["test" if held_out else "train"].append(text)
    rows = {name: _sequences(_SEPARATOR.join(parts)) for name, parts in texts.items()}
    spread = np.linspace(0, len(rows["test"]) - 1, _TEST_ROWS).astype(np.int64)
    rows["test"] = rows["test"][np.unique(spread)]
    return {
        name: pa.table({"tokens": pa.FixedShapeTensorArray.from_numpy_ndarray(values)})
        for name, values in rows.items()
    }


def _files() -> Iterator[tuple[str, bytes]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not _LEFT_OUT.intersection(name.parts):
            yield name.as_posix(), path.read_bytes()


def _sequences(text: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Cut into rows of CONTEXT + 1 bytes; each row's last byte is the next row's first."""
    values = np.frombuffer(text, np.uint8)
    count = (len(values) - 1) // CONTEXT
    starts = np.arange(count)[:, None] * CONTEXT
    rows: np.ndarray[Any, np.dtype[np.uint8]] = values[starts + np.arange(CONTEXT + 1)]
    return rows
