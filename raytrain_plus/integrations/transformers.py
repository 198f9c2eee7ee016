"""A ready task for language models of Hugging Face's transformers, with adapters of peft.

The model comes from a configuration or from a local folder; nothing is downloaded. It needs the
extra `raytrain-plus[hf]`.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from raytrain_plus.checkpoint import export as exporting
from raytrain_plus.checkpoint.checkpointer import Place
from raytrain_plus.extras import needed
from raytrain_plus.task import Batch, Task, TaskError

if TYPE_CHECKING:
    import torchmetrics

_CLASSES = {
    "causal-lm": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "masked-lm": ("AutoModelForMaskedLM", None),
    "sequence-classification": ("AutoModelForSequenceClassification", "SEQ_CLS"),
}
_DOCUMENTS = "document_ids"  # of `raytrain-plus data tokenize`
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclasses.dataclass
class TransformersTask(Task):
    """Trains a causal or masked language model, or classifies sequences.

    Rows have a column of token numbers of any length, or of text, for which the model's folder has
    a `tokenizer.json`. Batches are padded to their longest row. A language model's loss is the
    mean over all tokens of the step, and a classifier's that over all rows. Rows that
    `raytrain-plus data tokenize` has packed say which document each token belongs to: padding does
    not count in the loss.

    Attributes:
        kind: what the model is trained for.
        folder: a local folder as `save_pretrained` writes it. Without weights in it, the model is
            made from its configuration.
        config: a configuration in place of a folder: `model_type` and its settings.
        adapter: settings of a peft.LoraConfig, such as `{"r": 8}`; or a folder with an adapter,
            which is trained further. Checkpoints then hold what is trained, without the base model.
        input: the column with tokens or text.
        label: the column with the labels: classes, or token numbers of the input's length.
        labels: the number of classes. Default: that of the configuration.
        separate_documents: a causal language model sees the documents of a packed row as if each
            were a row of its own: attention, positions and loss stop where a document ends. By
            default the model reads on, and predicts the first token of the next document.
        max_length: longer rows are refused; 0 for the model's own limit.
        pad_token: the number of the padding token. Default: that of the configuration, else 0.
        mask_token: the number of the mask token, for a masked language model.
        mask_probability: the share of tokens to predict, for a masked language model.
        learning_rate, weight_decay: of AdamW.
        warmup: the part of the run in which the learning rate rises; then it falls to 0.
    """

    kind: Literal["causal-lm", "masked-lm", "sequence-classification"] = "causal-lm"
    folder: str = ""
    config: Mapping[str, Any] | None = None
    adapter: Mapping[str, Any] | str | None = None
    input: str = "input_ids"
    label: str = "label"
    labels: int = 0
    separate_documents: bool = False
    max_length: int = 0
    pad_token: int | None = None
    mask_token: int | None = None
    mask_probability: float = 0.15
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    warmup: float = 0.0

    evaluate_loss = True

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TaskError: they do not fit together.
        """
        if self.kind not in _CLASSES:
            raise TaskError(f"kind is {self.kind!r}, and must be one of {', '.join(_CLASSES)}")
        if bool(self.folder) == bool(self.config):
            raise TaskError("give either the folder of a model or the config of a new one")
        if self.config is not None and "model_type" not in self.config:
            raise TaskError("config has no model_type, such as 'gpt2' or 'llama'")
        if self.folder and not (Path(self.folder) / "config.json").is_file():
            raise TaskError(f"folder {self.folder} has no config.json: give a local model folder")
        if self.kind == "masked-lm" and self.mask_token is None:
            raise TaskError(
                "a masked language model needs mask_token, the number of its mask token"
            )
        if self.separate_documents and self.kind != "causal-lm":
            raise TaskError("separate_documents is for a causal language model (kind: causal-lm)")
        self.target = self.label
        self.keep_frozen = not self.adapter
        given = _json_of(self.folder) if self.folder else self.config or {}
        self.vocabulary_size = given.get("vocab_size")

    def depends_on(self) -> Mapping[str, str]:
        """Return the hash of the base model's files, and of the adapter's."""
        found = {"base model": _hash_of(self.folder)} if self.folder else {}
        if isinstance(self.adapter, str):
            found["adapter"] = _hash_of(self.adapter)
        return found

    def model(self) -> nn.Module:
        """Build the model from its configuration or its files, with its adapter if any."""
        with needed("hf"):
            import transformers  # noqa: PLC0415 - an extra, of seconds
        settings = self._configuration()
        auto = getattr(transformers, _CLASSES[self.kind][0])
        has_weights = bool(self.folder) and any(Path(self.folder).glob("*.safetensors"))
        if has_weights:
            model = auto.from_pretrained(self.folder, config=settings, local_files_only=True)
        else:
            model = auto.from_config(settings)
        made: nn.Module = model if not self.adapter else self._adapted(model)
        return made

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build AdamW; biases and norms do not decay."""
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.learning_rate)

    def schedule(self, progress: float) -> float:
        """Return the factor on the learning rate: it rises in the warm-up, then falls to 0."""
        if progress < self.warmup:
            return progress / self.warmup
        return (1 - progress) / (1 - self.warmup)

    def collate(self, rows: Sequence[Batch]) -> Batch:
        """Pad the rows' tokens to the longest of them."""
        ids = [self._tokens(row[self.input]) for row in rows]
        longest = max(map(len, ids))
        if self.max_length and longest > self.max_length:
            raise TaskError(f"a row has {longest} tokens, and max_length is {self.max_length}")
        batch: Batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self._padding()),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        }
        if _DOCUMENTS in rows[0]:
            numbers = [torch.as_tensor(row[_DOCUMENTS]) for row in rows]
            documents = pad_sequence(numbers, batch_first=True, padding_value=-1)
            batch["attention_mask"] = (documents >= 0).long()
            if self.separate_documents:
                batch[_DOCUMENTS] = documents
        elif self.separate_documents:
            raise TaskError(
                f"separate_documents needs the column {_DOCUMENTS!r}, which `raytrain-plus data "
                "tokenize --pack` writes"
            )
        if self.label in rows[0]:
            labels = [torch.as_tensor(row[self.label]) for row in rows]
            per_token = labels[0].dim() > 0
            batch[self.label] = (
                pad_sequence(labels, batch_first=True, padding_value=self.ignore_index)
                if per_token
                else torch.stack(labels)
            )
        return batch

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Return the logits; for a masked language model with the labels that were drawn."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.separate_documents:
            mask, places = _separated(batch[_DOCUMENTS])
            dtype = next(model.parameters()).dtype
            hidden = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
            return model(input_ids=ids, attention_mask=hidden, position_ids=places).logits
        if self.kind != "masked-lm":
            return model(input_ids=ids, attention_mask=mask).logits
        ids, labels = self._masked(ids, mask)
        return model(input_ids=ids, attention_mask=mask).logits, labels

    def loss(self, outputs: Any, batch: Batch) -> Any:
        """Return the cross entropy of each token, or of each row."""
        if self.kind == "sequence-classification":
            return functional.cross_entropy(outputs, batch[self.label], reduction="none")
        if self.kind == "masked-lm":
            logits, labels = outputs
        else:
            padded = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, self.ignore_index)
            logits, labels = outputs[:, :-1], batch.get(self.label, padded)[:, 1:]
            if self.separate_documents:
                documents = batch[_DOCUMENTS]
                is_first = documents[:, 1:] != documents[:, :-1]
                labels = labels.masked_fill(is_first, self.ignore_index)
        losses = functional.cross_entropy(
            logits.mT.float(), labels, ignore_index=self.ignore_index, reduction="none"
        )
        return losses, labels != self.ignore_index

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the class and the logits of each row; of a language model each row's mean loss."""
        outputs = self.forward(model, batch)
        if self.kind == "sequence-classification":
            return {"label": outputs.argmax(-1), "logits": outputs}
        losses, counts = self.loss(outputs, batch)
        tokens = counts.sum(1)
        return {"loss": (losses * counts).sum(1) / tokens, "tokens": tokens}

    def generate(
        self, model: nn.Module, prompt: str, length: int, choose: Callable[[Tensor], int]
    ) -> str:
        """Write on with a causal language model; its folder must have a `tokenizer.json`."""
        if self.kind != "causal-lm":
            raise TaskError(f"a model of kind {self.kind} does not write text: leave out prompts")
        tokens = self._tokens(prompt).tolist()
        limit = int(getattr(self._configuration(), "max_position_embeddings", 0) or 0)
        device = next(model.parameters()).device
        for _ in range(length):
            given = torch.tensor([tokens[-limit:]], device=device)
            outputs = model(input_ids=given, attention_mask=torch.ones_like(given))
            tokens.append(choose(outputs.logits[0, -1]))
        return str(_tokenizer_of(self.folder).decode(tokens))

    def metrics(self) -> "dict[str, torchmetrics.Metric]":
        """Return the accuracy of a classifier; a language model has its loss."""
        if self.kind != "sequence-classification":
            return {}
        from torchmetrics.classification import MulticlassAccuracy  # noqa: PLC0415 - of seconds

        return {"accuracy": MulticlassAccuracy(self._classes(), average="micro")}

    def save_pretrained(
        self,
        model: nn.Module,
        folder: str | Path,
        *,
        merge: bool = False,
        max_shard_size: int | str = "5GB",
    ) -> None:
        """Write a model into a folder that `from_pretrained` opens, with its tokenizer.

        Args:
            model: of this task.
            folder: where. An adapter is written without its base model.
            merge: write the base model with the adapter's weights added to its own.
            max_shard_size: a larger model is in several files of at most so many bytes, with an
                index. An adapter is one file.
        """
        written: Any = model
        if merge and self.adapter:
            written = written.merge_and_unload()
        is_adapter = bool(self.adapter) and not merge
        sizes = {} if is_adapter else {"max_shard_size": max_shard_size}
        written.save_pretrained(str(folder), **sizes)
        for name in _TOKENIZER if self.folder else ():
            if (Path(self.folder) / name).is_file():
                shutil.copy(Path(self.folder) / name, Path(folder) / name)

    def _configuration(self) -> Any:
        with needed("hf"):
            from transformers import AutoConfig  # noqa: PLC0415 - an extra, of seconds
        more = {"num_labels": self.labels} if self.labels else {}
        if self.kind == "sequence-classification" and self.pad_token is not None:
            more["pad_token_id"] = self.pad_token
        if self.folder:
            return AutoConfig.from_pretrained(self.folder, local_files_only=True, **more)
        given = {**(self.config or {}), **more}
        return AutoConfig.for_model(given.pop("model_type"), **given)

    def _adapted(self, model: nn.Module) -> nn.Module:
        with needed("hf"):
            import peft  # noqa: PLC0415 - an extra, of seconds
        if isinstance(self.adapter, str):
            made: nn.Module = peft.PeftModel.from_pretrained(
                model, self.adapter, is_trainable=True, local_files_only=True
            )
            return made
        settings = {"task_type": _CLASSES[self.kind][1], **(self.adapter or {})}
        adapted: nn.Module = peft.get_peft_model(model, peft.LoraConfig(**settings))
        return adapted

    def _classes(self) -> int:
        return self.labels or int(self._configuration().num_labels)

    def _padding(self) -> int:
        if self.pad_token is not None:
            return self.pad_token
        given = _json_of(self.folder) if self.folder else self.config or {}
        return int(given.get("pad_token_id") or 0)

    def _tokens(self, value: Any) -> Tensor:
        if isinstance(value, str):
            if not self.folder:
                raise TaskError(
                    f"column {self.input!r} holds text, which needs the tokenizer.json of a "
                    "model's folder: set `folder`, or store token numbers"
                )
            return torch.tensor(_tokenizer_of(self.folder).encode(value).ids)
        return value.long()  # type: ignore[no-any-return]

    def _masked(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Draw tokens to predict: 80 % become the mask, 10 % another token, 10 % stay."""
        chosen = (torch.rand(ids.shape) < self.mask_probability).to(ids.device) & (mask != 0)
        how = torch.rand(ids.shape).to(ids.device)
        other = torch.randint(self._words(), ids.shape).to(ids.device)
        labels = ids.masked_fill(~chosen, self.ignore_index)
        changed = ids.masked_fill(chosen & (how < 0.8), int(self.mask_token or 0))
        return torch.where(chosen & (how >= 0.9), other, changed), labels

    def _words(self) -> int:
        given = _json_of(self.folder) if self.folder else self.config or {}
        return int(given.get("vocab_size") or self._configuration().vocab_size)


def save_pretrained(
    task: TransformersTask, checkpoint: Place, folder: str | Path, *, merge: bool = False
) -> None:
    """Write the model of a checkpoint into a folder that `from_pretrained` opens.

    Args:
        task: the task of the run.
        checkpoint: its checkpoint's folder, as a path or URL.
        folder: where to write.
        merge: as for `TransformersTask.save_pretrained`.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, or of another model.
    """
    task.save_pretrained(exporting.export(task, checkpoint), folder, merge=merge)


def _separated(documents: Tensor) -> tuple[Tensor, Tensor]:
    """Return which tokens each token may see, and its position in its document.

    Args:
        documents: the number of each token's document, of shape (rows, tokens).

    Returns:
        Booleans of shape (rows, 1, tokens, tokens), and positions of shape (rows, tokens).
    """
    count = documents.shape[1]
    same = documents[:, :, None] == documents[:, None, :]
    seen = same.tril()[:, None]
    places = torch.arange(count, device=documents.device).expand_as(documents)
    is_first = torch.ones_like(documents, dtype=torch.bool)
    is_first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = torch.where(is_first, places, 0).cummax(dim=1).values
    return seen, places - starts


@cache
def _tokenizer_of(folder: str) -> Any:
    with needed("hf"):
        from tokenizers import Tokenizer  # noqa: PLC0415 - an extra
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise TaskError(f"folder {folder} has no tokenizer.json: save the tokenizer into it")
    return Tokenizer.from_file(str(path))


@cache
def _json_of(folder: str) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads((Path(folder) / "config.json").read_text())
    return content


def _hash_of(folder: str) -> str:
    """Return the SHA-256 of the files of a model: its configuration and its weights."""
    hashed = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".bin"):
            hashed.update(path.name.encode())
            with path.open("rb") as file:
                hashed.update(hashlib.file_digest(file, "sha256").digest())
    return hashed.hexdigest()
