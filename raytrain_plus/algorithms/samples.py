"""Samples: what the model predicts for a few rows, or writes after a prompt, at each evaluation."""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, EvaluatedSet, Step
from raytrain_plus.seeds import seed_for
from raytrain_plus.storage import atomic_files

FOLDER = "samples"
"""The folder of image files, in the run's folder."""

_LONGEST = 4000  # letters of a text in the journal
_MOST_NUMBERS = 4  # of a prediction, in words
_SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}  # of image files
_PROMPTED = "prompted"


class Samples(Aspect):
    """Records a few rows with what `task.predict` returns, and what `task.generate` writes.

    They are in the journal, the report and the loggers. An image of a row is a file in `samples` of
    the run's folder. Every worker computes them, with the same bits, while the others would wait
    for it anyway.

    Attributes:
        rows: how many rows of each evaluation set. Default: 4, or none if there are prompts.
        first: the first of these rows, in the order in which they are stored. Default 0.
        image: the column with the image of a row. Default: the first that looks like one; "" for
            none.
        prompts: texts to continue; the task must define `generate`.
        length: tokens to write after a prompt. Default 64.
        temperature: 0 takes the most probable token each time; above, tokens are drawn, with the
            same seed for a prompt at each evaluation. Default 0.0.
    """

    observes: ClassVar[bool] = True
    runs_after: ClassVar[tuple[str, ...]] = ("*",)

    rows: int | None = Field(None, ge=0)
    first: int = Field(0, ge=0)
    image: str | None = None
    prompts: tuple[str, ...] = ()
    length: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0.0)

    def evaluate(self, step: Step) -> Advice:
        """Record the samples, after the evaluation and with the weights that it has used."""
        yield
        seen = step.evaluation
        if seen is None:
            return
        rows = (0 if self.prompts else 4) if self.rows is None else self.rows
        stop = min(self.first + rows, seen.rows)
        if stop > self.first:
            seen.shown += seen.apart(lambda: self._predicted(step, seen, self.first, stop))
        if self.prompts and _PROMPTED not in step.notes:  # once, and not for each set
            step.notes[_PROMPTED] = True
            seen.shown += seen.apart(lambda: self._written(step, seen))

    def _predicted(
        self, step: Step, seen: EvaluatedSet, first: int, stop: int
    ) -> list[dict[str, str]]:
        batch = seen.load(first, stop)
        predicted = seen.task.predict(step.model, batch)
        words = _Words(seen.labels.get(step.target, ()), is_class=_is_class(batch.get(step.target)))
        found = []
        for i in range(stop - first):
            sample = {"set": seen.name} if seen.name else {}
            sample["row"] = str(first + i)
            if step.target in batch:
                sample["label"] = words.of(batch[step.target][i])
            sample["prediction"] = words.of_row(predicted, i)
            content, ending = _image_of(batch, self.image, i)
            path = f"{FOLDER}/step_{step.number:08d}/{seen.name or 'row'}_{first + i}{ending}"
            if content and _is_written(step.folder / path, content):
                sample["image"] = path
            found.append(sample)
        return found

    def _written(self, step: Step, seen: EvaluatedSet) -> list[dict[str, str]]:
        found = []
        for i, prompt in enumerate(self.prompts):
            draws = torch.Generator().manual_seed(seed_for(seen.seed, self.name, i))
            choose = chooser(self.temperature, draws)
            text = seen.task.generate(step.model, prompt, self.length, choose)
            found.append({"prompt": prompt[:_LONGEST], "text": str(text)[:_LONGEST]})
        return found


def chooser(temperature: float, draws: torch.Generator) -> Callable[[Tensor], int]:
    """Return the function that chooses the next token from its logits, shape (vocabulary,).

    Args:
        temperature: 0 chooses the most probable token.
        draws: the generator to draw from, on the CPU.
    """

    def choose(logits: Tensor) -> int:
        values = logits.detach().double().cpu()
        if temperature == 0:
            return int(values.argmax())
        return int(torch.multinomial((values / temperature).softmax(0), 1, generator=draws))

    return choose


def _is_class(labels: Any) -> bool:
    return isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() == 1


@dataclass(frozen=True)
class _Words:
    """Says values in words.

    Attributes:
        names: of the classes, if they are known.
        is_class: the label is a class, so that a list of scores means the best of them.
    """

    names: Sequence[str]
    is_class: bool

    def of_row(self, predicted: Any, i: int) -> str:
        """Return what `task.predict` has returned for a row."""
        if not isinstance(predicted, Mapping):
            return self.of(predicted[i])
        values = {name: self.of(column[i]) for name, column in predicted.items()}
        if len(values) == 1:
            return next(iter(values.values()))
        return ", ".join(f"{name} {value}" for name, value in values.items())

    def of(self, value: Any) -> str:
        """Return a value: a class by its name, and a list of scores by its best class."""
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            if self.is_class and value.is_floating_point() and value.dim() == 1 and len(value) > 1:
                best = int(value.argmax())
                return f"{self._named(best)} ({float(value.double().softmax(0)[best]):.0%})"
            value = value.tolist()
        if isinstance(value, list):
            more = ", ..." if len(value) > _MOST_NUMBERS else ""
            return f"[{', '.join(map(self.of, value[:_MOST_NUMBERS]))}{more}]"
        if isinstance(value, bool | int):
            return self._named(int(value))
        return f"{value:.4g}" if isinstance(value, float) else str(value)[:_LONGEST]

    def _named(self, number: int) -> str:
        return self.names[number] if 0 <= number < len(self.names) else str(number)


# -- images


def _image_of(batch: Mapping[str, Any], column: str | None, i: int) -> tuple[bytes, str]:
    """Return the image of a row as the content of a file, and the ending of its name."""
    if column == "":
        return b"", ""
    for name in [column] if column else batch:
        values = batch.get(name)
        if values is None:
            continue
        value = values[i]
        if isinstance(value, bytes):
            ending = next((e for start, e in _SIGNATURES.items() if value.startswith(start)), "")
            if ending:
                return value, ending
        elif isinstance(value, Tensor) and (pixels := _pixels(value)) is not None:
            return png(pixels), ".png"
    return b"", ""


def _pixels(value: Tensor) -> Tensor | None:
    """Return an image as uint8 of shape (height, width, 1 or 3); None if it does not look so."""
    value = value.detach().cpu()
    if value.dim() == 2:
        value = value[None]
    if value.dim() != 3:
        return None
    if value.shape[0] not in (1, 3) and value.shape[2] in (1, 3):
        value = value.movedim(2, 0)
    if value.shape[0] not in (1, 3) or min(value.shape[1:]) < 4:
        return None
    if value.dtype != torch.uint8:
        value = value.double()
        low, high = float(value.min()), float(value.max())
        if low < 0 or high > 1:  # normalized, or another scale
            value = (value - low) / max(high - low, 1e-12)
        value = (value * 255).round().to(torch.uint8)
    return value.movedim(0, 2).contiguous()


def png(pixels: Tensor) -> bytes:
    """Return an image as a PNG file.

    Args:
        pixels: uint8 of shape (height, width, 1 or 3).
    """
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, -1).numpy()
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _is_written(path: Path, content: bytes) -> bool:
    """Write a file; say whether it is there. A full disk does not end a run because of a sample."""
    try:
        atomic_files.write(path, content)
    except OSError:
        return False
    return True
