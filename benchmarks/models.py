"""Which models keep the promise: `python -m benchmarks.models [--json]`.

Each model is small and made of the building blocks of its kind. It trains on one worker, in a group
that grows and shrinks, and with a checkpoint and a resume. The final states must be equal in every
bit.
"""

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from benchmarks import report
from benchmarks.group import Group, verdict
from raytrain_plus.task import Batch, Task

_SITE = Path(__file__).parents[1] / ".venv" / "transformers" / "site-packages"
_ROWS, _LENGTH, _TOKENS, _WIDTH = 4, 6, 32, 16

Make = Callable[[], nn.Module]


class Sequences(Task):
    """Predicts the next token of short sequences, or their first token from an image of them."""

    def __init__(self, make: Make, *, images: bool = False) -> None:
        self._make = make
        self._images = images

    def model(self) -> nn.Module:
        """Return the model."""
        return self._make()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Return the logits."""
        if self._images:
            return model(batch["image"])
        outputs = model(batch["tokens"])
        return getattr(outputs, "logits", outputs)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Return one cross-entropy per row."""
        if self._images:
            return functional.cross_entropy(outputs, batch["label"], reduction="none")
        wanted = batch["tokens"].roll(-1, 1)
        return functional.cross_entropy(outputs.mT, wanted, reduction="none").mean(1)


def part(step: int, rank: int) -> Batch:
    """Return the batch of one logical rank in one step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {
        "tokens": torch.randint(0, _TOKENS, (_ROWS, _LENGTH), generator=generator),
        "image": torch.randn((_ROWS, 3, 8, 8), generator=generator),
        "label": torch.randint(0, 4, (_ROWS,), generator=generator),
    }


def convolutions(norm: Callable[[int], nn.Module], wrap: Any = lambda layer: layer) -> nn.Module:
    """Return a small network of convolutions."""
    return nn.Sequential(
        wrap(nn.Conv2d(3, 8, 3, padding=1)),
        norm(8),
        nn.ReLU(),
        wrap(nn.Conv2d(8, 8, 3, stride=2)),
        norm(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        wrap(nn.Linear(8, 4)),
    )


class Checkpointed(nn.Module):
    """Computes a model's forward again in the backward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        """Return what the model returns."""
        return checkpoint(self.model, images, use_reentrant=False)


class Autocast(Checkpointed):
    """Computes a model in bfloat16."""

    def forward(self, images: Tensor) -> Any:
        """Return what the model returns, in single precision."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(images).float()


class Recurrent(nn.Module):
    """An embedding, a recurrent layer and a head."""

    def __init__(self, kind: Callable[..., nn.Module], **embedding: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(_TOKENS, _WIDTH, **embedding)
        self.layer = kind(_WIDTH, _WIDTH, batch_first=True)
        self.head = nn.Linear(_WIDTH, _TOKENS)

    def forward(self, tokens: Tensor) -> Any:
        """Return the logits."""
        return self.head(self.layer(self.embed(tokens))[0])


class Transformer(nn.Module):
    """Two of torch's encoder layers with dropout; the head may be tied to the embedding."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(_TOKENS, _WIDTH)
        layer = nn.TransformerEncoderLayer(_WIDTH, 2, 32, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(_WIDTH, _TOKENS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Any:
        """Return the logits."""
        return self.head(self.layers(self.embed(tokens)))


class Experts(nn.Module):
    """Each token goes to one of many experts; most experts get no token of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(_TOKENS, _WIDTH)
        self.gate = nn.Linear(_WIDTH, 16)
        self.experts = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in range(16))
        self.head = nn.Linear(_WIDTH, _TOKENS)

    def forward(self, tokens: Tensor) -> Any:
        """Return the logits."""
        found = self.embed(tokens)
        weights, chosen = self.gate(found).softmax(-1).max(-1)
        mixed = torch.zeros_like(found)
        for place, expert in enumerate(self.experts):
            if (mine := chosen == place).any():
                mixed[mine] = expert(found[mine]) * weights[mine].unsqueeze(-1)
        return self.head(found + mixed)


def of_transformers() -> dict[str, Make]:
    """Return models of `transformers`, each made from a configuration."""
    sys.path.append(str(_SITE))
    import transformers as hub  # type: ignore[import-not-found]

    sizes = {"vocab_size": _TOKENS, "hidden_size": _WIDTH, "intermediate_size": 32}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    both = {**sizes, **layers}
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    gpt = {"vocab_size": _TOKENS, "n_embd": _WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return {
        "transformers Llama": lambda: hub.LlamaForCausalLM(hub.LlamaConfig(**both)),
        "transformers Llama, dynamic RoPE": lambda: hub.LlamaForCausalLM(
            hub.LlamaConfig(**both, rope_parameters=rope)
        ),
        "transformers BERT": lambda: hub.BertForMaskedLM(hub.BertConfig(**both)),
        "transformers GPT-2": lambda: hub.GPT2LMHeadModel(hub.GPT2Config(**gpt)),
    }


def models() -> dict[str, Callable[[], Task]]:
    """Return tasks by the name of their model."""
    images: dict[str, Make] = {
        "convolutions, BatchNorm": lambda: convolutions(nn.BatchNorm2d),
        "convolutions, GroupNorm": lambda: convolutions(lambda n: nn.GroupNorm(2, n)),
        "convolutions, InstanceNorm with statistics": lambda: convolutions(
            lambda n: nn.InstanceNorm2d(n, track_running_stats=True)
        ),
        "convolutions, spectral norm": lambda: convolutions(
            nn.BatchNorm2d, parametrizations.spectral_norm
        ),
        "convolutions, weight norm": lambda: convolutions(
            nn.BatchNorm2d, parametrizations.weight_norm
        ),
        "convolutions, channels last": lambda: convolutions(nn.BatchNorm2d).to(
            memory_format=torch.channels_last
        ),
        "convolutions, SyncBatchNorm": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(
            convolutions(nn.BatchNorm2d)
        ),
        "convolutions, checkpointed": lambda: Checkpointed(convolutions(nn.BatchNorm2d)),
        "convolutions, autocast to bfloat16": lambda: Autocast(convolutions(nn.BatchNorm2d)),
        "convolutions, bfloat16": lambda: nn.Sequential(
            _Cast(), convolutions(lambda n: nn.GroupNorm(2, n)).bfloat16()
        ),
    }
    texts: dict[str, Make] = {
        "LSTM": lambda: Recurrent(nn.LSTM),
        "GRU": lambda: Recurrent(nn.GRU),
        "embedding with max_norm": lambda: Recurrent(nn.GRU, max_norm=0.5),
        "embedding with sparse gradients": lambda: Recurrent(nn.GRU, sparse=True),
        "transformer with dropout": Transformer,
        "transformer, tied embedding": lambda: Transformer(tied=True),
        "mixture of experts, some unused": Experts,
    }
    try:
        texts |= of_transformers()
    except ImportError as error:
        print(f"transformers is left out: {error}")
    return {
        **{name: partial(Sequences, make, images=True) for name, make in images.items()},
        **{name: partial(Sequences, make) for name, make in texts.items()},
    }


class _Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


def main() -> None:
    """Try all models, and print the results."""
    options = report.options(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    rows = []
    for name, make in models().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = verdict(lambda make=make: Group(make, part), steps=2)
        found = found.replace("TaskError: ", "refused: ")
        rows.append({"model": name, "result": found})
        print(f"| {name} | {found} |", flush=True)
    if options.json:
        print(json.dumps({"rows": rows, "aims": []}))


if __name__ == "__main__":
    main()
