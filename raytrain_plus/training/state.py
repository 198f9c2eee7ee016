"""A replica's state: everything that is bit for bit equal on all workers between two steps."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_plus.algorithms import Step, Training, Weave
from raytrain_plus.clock import Clock
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.task import Task, TaskError
from raytrain_plus.training.building import build_model, build_optimizer
from raytrain_plus.training.modes import to_training

Scalars = dict[str, Any]


_FILLED = ("model/", "aspects/")  # tensors that are there before a state is loaded
_ONE_STEP = Clock(total_steps=1, steps_per_epoch=1, batch_size=1, evaluate_every=1)


class Replica:
    """A model, its optimizer, what aspects keep, and how much has been trained.

    Attributes:
        training: what is the same in all steps.
        parameters: the trainable parameters by name, in name order.
        step: committed steps.
        samples, tokens: how many have been trained on, which may be fewer than have been loaded.
        torn: an update has begun and not ended, so that this is the state of no step.
        loads: how often another state has been taken over.
    """

    def __init__(self, training: Training) -> None:
        model, optimizer = training.model, training.optimizer
        self.training = training
        self.model = model
        self.optimizer = optimizer
        self.step = 0
        self.samples = 0
        self.tokens = 0
        self.torn = False
        self.loads = 0
        self._fit: AbstractContextManager[None] = nullcontext()
        self.parameters: dict[str, nn.Parameter] = dict(
            sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
        )
        self._names = {id(p): n for n, p in model.named_parameters()}
        if not self.parameters:
            raise TaskError("the model has no parameter that requires a gradient")
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            for key, value in group.items():
                if isinstance(value, Tensor):
                    raise TaskError(f"the optimizer's {key} is a tensor; give it as a number")
            if any(id(p) not in self._names for p in group["params"]):
                raise TaskError("the optimizer holds a tensor that is no parameter of the model")

    @classmethod
    def build(
        cls,
        task: Task,
        seed: int,
        device: torch.device,
        *,
        weave: Weave | None = None,
        clock: Clock = _ONE_STEP,
    ) -> "Replica":
        """Make the task's model and optimizer, the same on every worker of the run.

        The `fit` advice of the weave changes them; `undo_fit` changes them back.
        """
        seed_global_generators(seed_for(seed, "model"))
        model = build_model(task).to(device)
        training = Training(
            model=model,
            optimizer=build_optimizer(task, model),
            clock=clock,
            seed=seed,
            target=task.target,
            tokens=task.tokens,
            ignore_index=task.ignore_index,
        )
        fit = (weave or Weave(())).around("fit", Step(training, 0))
        seed_global_generators(seed_for(seed, "fit"))
        fit.__enter__()
        replica = cls(training)
        replica._fit = fit
        to_training(training.optimizer)
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
        """Change the model back to what the task made; returns it. Nothing can be trained then."""
        self._fit.__exit__(None, None, None)
        self._fit = nullcontext()
        return self.model

    def set_learning_rate(self, factor: float) -> None:
        """Set every parameter group's learning rate to `factor` times its initial one."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state by name, in name order; no copies."""
        found = {f"model/{n}": p.detach() for n, p in self.model.named_parameters()}
        found |= {f"model/{n}": b.detach() for n, b in self.model.named_buffers()}
        for name, key, value in self._optimizer_state():
            if isinstance(value, Tensor):
                found[f"optimizer/{name}/{key}"] = value.detach()
        for aspect, key, value in self._aspect_state():
            if isinstance(value, Tensor):
                found[f"aspects/{aspect}/{key}"] = value.detach()
        return dict(sorted(found.items()))

    def scalars(self) -> Scalars:
        """Return the rest of the state, as JSON can hold it."""
        return {
            "step": self.step,
            "samples": self.samples,
            "tokens": self.tokens,
            "aspects": {
                f"{aspect}/{key}": value
                for aspect, key, value in self._aspect_state()
                if not isinstance(value, Tensor)
            },
            "groups": [
                {key: value for key, value in group.items() if key != "params"}
                for group in self.optimizer.param_groups
            ],
            "optimizer": {
                f"{name}/{key}": value
                for name, key, value in self._optimizer_state()
                if not isinstance(value, Tensor)
            },
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], scalars: Scalars) -> None:
        """Take over another replica's state; tensors of model and aspects are filled in place.

        Raises:
            ValueError: the state belongs to another model, naming the tensors that differ.
        """
        self.check(tensors)
        self.loads += 1
        for name, tensor in self.tensors().items():
            if name.startswith(_FILLED):
                tensor.copy_(tensors[name])
        by_name = {self._names[id(p)]: p for p in self._optimized()}
        self.optimizer.state.clear()
        for full, tensor in tensors.items():
            if full.startswith("optimizer/"):
                name, _, key = full.removeprefix("optimizer/").rpartition("/")
                self.optimizer.state[by_name[name]][key] = _laid_out_like(by_name[name], tensor)
        for full, value in scalars["optimizer"].items():
            name, _, key = full.rpartition("/")
            self.optimizer.state[by_name[name]][key] = value
        for full, value in scalars["aspects"].items():
            aspect, _, key = full.partition("/")
            self.training.states[aspect][key] = value
        for group, saved in zip(self.optimizer.param_groups, scalars["groups"], strict=True):
            for key, value in saved.items():
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
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

    def digest(self) -> str:
        """Return the sha256 over the bytes of model, optimizer and aspects in name order."""
        return digest_of(self.tensors(), self.scalars())

    def _optimized(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _aspect_state(self) -> list[tuple[str, str, Any]]:
        return [
            (aspect, key, value)
            for aspect, state in self.training.states.items()
            for key, value in state.items()
        ]

    def _optimizer_state(self) -> list[tuple[str, str, Any]]:
        return [
            (self._names[id(p)], str(key), value)
            for p in self._optimized()
            for key, value in self.optimizer.state.get(p, {}).items()
        ]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize <= 2 and dtype.is_floating_point else dtype


def _laid_out_like(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """Copy a tensor into a parameter's strides: other strides may be added up by other kernels."""
    if tensor.shape != parameter.shape:
        return tensor.clone()
    return torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def digest_of(tensors: Mapping[str, Tensor], scalars: Scalars) -> str:
    """Return the digest of a state that is given as a replica gives its own."""
    hashed = hashlib.sha256()
    entries: dict[str, Any] = {**tensors}
    entries |= {f"optimizer/{n}": v for n, v in scalars["optimizer"].items()}
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
