"""A replica's state: everything that is bit for bit equal on all workers between two steps."""

import hashlib
import itertools
import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_plus.algorithms import Step, Training, Weave
from raytrain_plus.clock import Clock
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.task import Task, TaskError
from raytrain_plus.training.building import build_model, build_optimizer
from raytrain_plus.training.encoding import SAFETENSORS
from raytrain_plus.training.lr_scheduler import Scheduling
from raytrain_plus.training.modes import to_training
from raytrain_plus.training.optimizer_state import OptimizerState, plain_entries

Scalars = dict[str, Any]


_FILLED = ("model/", "aspects/")  # tensors that are there before a state is loaded
_ONE_STEP = Clock(total_steps=1, steps_per_epoch=1, batch_size=1, evaluate_every=1)


class Replica:
    """A model, its optimizer, what aspects keep, and how much has been trained.

    Attributes:
        training: what is the same in all steps.
        scheduling: the torch scheduler that the task returned with the optimizer, if any.
        parameters: the trainable parameters by name, in name order.
        step: committed steps.
        samples, tokens: how many were trained on, which may be fewer than were loaded.
        torn: an update has begun and not ended, so that this is not the state after any step.
        bookkeeping: what the forward keeps in Python, by name: its value, and what each logical
            rank adds (`bookkeeping.py`). It is not part of the digest.
        loads: how often another state has been loaded.
        build_seconds: how long the task took to make model and optimizer.
    """

    def __init__(
        self,
        training: Training,
        scheduling: Scheduling | None = None,
        *,
        keep_frozen: bool = True,
    ) -> None:
        model, optimizer = training.model, training.optimizer
        self.training = training
        self.scheduling = scheduling
        self.model = model
        self.optimizer = optimizer
        self.step = 0
        self.samples = 0
        self.tokens = 0
        self.torn = False
        self.bookkeeping: dict[str, list[Any]] = {}
        self.loads = 0
        self.build_seconds = 0.0
        self._fit: AbstractContextManager[None] = nullcontext()
        self.parameters: dict[str, nn.Parameter] = dict(
            sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
        )
        self._names = {id(p): n for n, p in model.named_parameters()}
        self._left_out = {
            n for n, p in model.named_parameters() if not (keep_frozen or p.requires_grad)
        }
        if not self.parameters:
            raise TaskError("the model has no parameter that requires a gradient")
        for group in optimizer.param_groups:
            rate = group.get("lr")
            group.setdefault("initial_lr", rate.clone() if isinstance(rate, Tensor) else rate)
        self._optimizer_state = OptimizerState(optimizer, model)

    @classmethod
    def build(
        cls,
        task: Task,
        seed: int,
        device: torch.device,
        *,
        weave: Weave | None = None,
        clock: Clock = _ONE_STEP,
        folder: Path = Path(),
    ) -> "Replica":
        """Make the task's model and optimizer, the same on every worker of the run.

        The `fit` advice of the weave changes them; `undo_fit` changes them back.
        """
        began = time.monotonic()
        seed_global_generators(seed_for(seed, "model"))
        model = build_model(task).to(device)
        optimizer, scheduling = build_optimizer(task, model)
        training = Training(
            model=model,
            optimizer=optimizer,
            clock=clock,
            seed=seed,
            target=task.target,
            tokens=task.tokens,
            ignore_index=task.ignore_index,
            folder=folder,
        )
        fit = (weave or Weave(())).around("fit", Step(training, 0))
        seed_global_generators(seed_for(seed, "fit"))
        fit.__enter__()
        to_training(training.optimizer)
        replica = cls(training, scheduling, keep_frozen=task.keep_frozen)
        replica._fit = fit
        replica.build_seconds = time.monotonic() - began
        return replica

    def name_of(self, parameter: nn.Parameter) -> str:
        """Return a parameter's name in the model."""
        return self._names[id(parameter)]

    def first_not_finite(self) -> str | None:
        """Return the name of the first tensor that has lost its values, or None.

        That is a trained parameter that holds NaN or infinity, or a tensor of the optimizer that
        holds NaN.
        """
        kept = {n: t for n, t in self.tensors().items() if n.startswith("optimizer/")}
        trained = {f"model/{name}": p.detach() for name, p in self.parameters.items()}
        for name, tensor in (trained | kept).items():
            numbers = tensor.is_floating_point() or tensor.is_complex()
            # A sum hides no NaN and no infinity, and is one pass over memory without a copy.
            if numbers and not torch.isfinite(tensor.sum(dtype=_wide(tensor.dtype))):
                bad = ~torch.isfinite(tensor) if name in trained else torch.isnan(tensor)
                if bad.any():
                    return name
        return None

    def undo_fit(self) -> nn.Module:
        """Change the model back to what the task made, and return it. It cannot be trained then."""
        self._fit.__exit__(None, None, None)
        self._fit = nullcontext()
        return self.model

    def set_learning_rate(self, factor: float) -> None:
        """Set every parameter group's learning rate to `factor` times its initial one."""
        for group in self.optimizer.param_groups:
            initial = group.setdefault("initial_lr", group.get("lr"))
            if isinstance(rate := group.get("lr"), Tensor):
                rate.fill_(float(initial) * factor)  # type: ignore[arg-type]
            elif initial is not None:
                group["lr"] = initial * factor
            elif factor != 1.0:
                raise TaskError(
                    f"task.schedule() gave the factor {factor}, and the optimizer "
                    f"{type(self.optimizer).__name__} has no learning rate (`lr`) to apply it to"
                )

    def update(self) -> None:
        """Take the optimizer's step, and the scheduler's if it is due."""
        self.optimizer.step()
        if self.scheduling is not None:
            self.scheduling.advance(self.step + 1, self.training.clock.steps_per_epoch)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state by name, in name order; no copies.

        Frozen parameters that each worker makes for itself (`Task.keep_frozen`) are left out.
        """
        named = self.model.named_parameters()
        found = {f"model/{n}": p.detach() for n, p in named if n not in self._left_out}
        found |= {f"model/{n}": b.detach() for n, b in self.model.named_buffers()}
        return dict(sorted((found | self.kept()[0]).items()))

    def frozen(self) -> dict[str, Tensor]:
        """Return the parameters that are left out of the state, by name; no copies."""
        named = self.model.named_parameters()
        return {f"model/{n}": p.detach() for n, p in named if n in self._left_out}

    def scalars(self) -> Scalars:
        """Return the rest of the state, as JSON can hold it."""
        return self.kept()[1]

    def kept(self) -> tuple[dict[str, Tensor], Scalars]:
        """Return the state outside of the model: tensors by name, and plain data; no copies.

        Raises:
            TaskError: the optimizer keeps something that cannot be carried, by name.
        """
        tensors, groups, rest = self._optimizer_state.read()
        aspects: dict[str, Any] = {}
        for aspect, state in self.training.states.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"aspects/{aspect}/{key}"] = value.detach()
                else:
                    aspects[f"{aspect}/{key}"] = value
        kept = {"bookkeeping": {n: [*v] for n, v in self.bookkeeping.items()}}
        return tensors, {
            **(kept if self.bookkeeping else {}),
            "step": self.step,
            "samples": self.samples,
            "tokens": self.tokens,
            "aspects": aspects,
            "groups": groups,
            "optimizer": rest,
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], scalars: Scalars) -> None:
        """Load another replica's state; tensors of model and aspects are filled in place.

        Raises:
            ValueError: the state belongs to another model, naming the tensors that differ.
        """
        self.check(tensors)
        self._optimizer_state.check(tensors, scalars["groups"], scalars["optimizer"])
        self.loads += 1
        for name, tensor in self.tensors().items():
            if name.startswith(_FILLED):
                tensor.copy_(tensors[name])
        for full, value in scalars["aspects"].items():
            aspect, _, key = full.partition("/")
            self.training.states[aspect][key] = value
        self._optimizer_state.load(tensors, scalars["groups"], scalars["optimizer"])
        self.bookkeeping = {n: [*v] for n, v in scalars.get("bookkeeping", {}).items()}
        self.step = scalars["step"]
        self.samples, self.tokens = scalars["samples"], scalars["tokens"]
        self.torn = False

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that a state's tensors can be loaded.

        Raises:
            ValueError: the state belongs to another model, naming the tensors that differ.
        """
        own = self.tensors()
        ours = {n: (t.shape, t.dtype) for n, t in own.items() if n.startswith(_FILLED)}
        given = {n: (t.shape, t.dtype) for n, t in tensors.items() if n.startswith(_FILLED)}
        differing = sorted(n for n in ours.keys() | given.keys() if ours.get(n) != given.get(n))
        if differing:
            raise ValueError(f"the state belongs to another model; these differ: {differing[:5]}")

    def check_carried(self) -> None:
        """Check that the state can be given to another worker and to a checkpoint.

        Raises:
            TaskError: something in it cannot, by name.
        """
        spans: dict[int, list[tuple[int, int, str]]] = {}
        for name, tensor in self.tensors().items():
            if tensor.dtype not in SAFETENSORS:
                raise TaskError(
                    f"{name} is of dtype {tensor.dtype}, which no checkpoint file (safetensors) "
                    "holds: use another, or keep its parts apart (torch.view_as_real)"
                )
            if tensor.numel():
                spans.setdefault(tensor.untyped_storage().data_ptr(), []).append(
                    _span(name, tensor)
                )
        for held in spans.values():
            for (_, end, one), (begin, _, other) in itertools.pairwise(sorted(held)):
                of_model = one.startswith("model/") and other.startswith("model/")
                if begin < end and not of_model:
                    raise TaskError(
                        f"{one} and {other} share memory, and in another worker they would not: "
                        "keep a copy (.clone())"
                    )
        for key, value in self.scalars()["aspects"].items():
            _check_plain(key, value)

    def digest(self, *, with_frozen: bool = False) -> str:
        """Return the sha256 over the bytes of model, optimizer and aspects in name order.

        Args:
            with_frozen: also over the parameters that are left out of the state.
        """
        left_out = self.frozen() if with_frozen else {}
        return digest_of(self.tensors() | left_out, self.scalars())


def _span(name: str, tensor: Tensor) -> tuple[int, int, str]:
    """Return the range of addresses of a tensor's elements, and its name."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    reach = sum((size - 1) * stride for size, stride in sizes) + 1
    return tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size(), name


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize <= 2 and dtype.is_floating_point else dtype


def _check_plain(key: str, value: Any) -> None:
    """Check that JSON holds what an aspect keeps."""
    try:
        same = json.dumps(json.loads(json.dumps(value))) == json.dumps(value)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise TaskError(
            f"the aspect {key.replace('/', ' keeps, under ')}, a {type(value).__name__}, which "
            "cannot be carried to another worker and to a checkpoint: keep a tensor, or "
            "what JSON can hold"
        )


def digest_of(tensors: Mapping[str, Tensor], scalars: Scalars) -> str:
    """Return the digest of a state that is given as a replica gives its own."""
    hashed = hashlib.sha256()
    entries: dict[str, Any] = {**tensors}
    entries |= plain_entries(scalars["groups"], scalars["optimizer"])
    entries |= {f"aspects/{n}": v for n, v in scalars["aspects"].items()}
    for _, value in sorted(entries.items()):
        hashed.update(
            tensor_memory(value) if isinstance(value, Tensor) else json.dumps(value).encode()
        )
    return hashed.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's elements as bytes, in row-major order, of any dtype and device."""
    return bytes(tensor_memory(tensor))


def tensor_memory(tensor: Tensor) -> memoryview:
    """Return a tensor's elements as `tensor_bytes` does; no copy if they lie like that on a CPU."""
    if tensor.numel() == 0:
        return memoryview(b"")
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return raw.cpu().numpy().data
