"""Surgery: change a model in place, so that the change can be undone.

A module's class is replaced with a subclass of it, made of its old class and a mixin with the new
behaviour. Everything else stays: the module's identity and name, its Parameters, buffers, hooks,
dtype, device, mode, `requires_grad`, `padding_mode`, and all other references to it. So optimizers,
checkpoints and tied weights need no repair, and several methods may change the same module.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import AspectError, AspectWarning

M = TypeVar("M", bound=nn.Module)


class Surgery:
    """What has been done to a model, and how to undo it.

    Args:
        model: the model.
        optimizer: its optimizer, which gets the new parameters; None if there is none yet.

    Attributes:
        changed: the modules that have been changed, by name.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        self.model = model
        self.optimizer = optimizer
        self.changed: dict[str, nn.Module] = {}
        self._undo: list[Callable[[], None]] = []

    def candidates(self, kind: type[M], mixin: type) -> Iterator[tuple[str, M]]:
        """Yield the modules of a kind, each once, that do not have a mixin yet."""
        for name, module in list(self.model.named_modules()):
            if isinstance(module, kind) and not isinstance(module, mixin):
                yield name, module

    def mix_in(self, name: str, module: nn.Module, mixin: type, **attributes: Any) -> None:
        """Replace a module's class with a subclass of it that has a mixin in front.

        Args:
            name: the module's name in the model.
            module: the module; afterwards `isinstance(module, mixin)`.
            mixin: the new behaviour; its methods call the old ones by `super()`.
            attributes: plain attributes that the mixin needs; `undo` removes them.
        """
        for key in attributes:
            if hasattr(module, key):
                raise AspectError(f"module {name!r} has an attribute {key!r} of its own")
        before = module.__class__
        module.__class__ = _joined(mixin, before)  # type: ignore[arg-type]
        for key, value in attributes.items():
            object.__setattr__(module, key, value)

        def undo() -> None:
            module.__class__ = before
            for key in attributes:
                object.__delattr__(module, key)

        self._undo.append(undo)
        self.changed[name] = module

    def add_module(
        self, owner: nn.Module, key: str, module: nn.Module, *, like: nn.Parameter
    ) -> None:
        """Add a submodule with new parameters.

        It gets the dtype and device of `like` and the mode of its parent. The optimizer trains it
        in the parameter group of `like`.
        """
        module.to(dtype=like.dtype, device=like.device).train(owner.training)
        owner.add_module(key, module)
        self._undo.append(lambda: delattr(owner, key))
        self._optimize(list(module.parameters()), like)

    def replace_parameter(
        self, owner: nn.Module, key: str, new: Mapping[str, nn.Parameter], *, like: nn.Parameter
    ) -> None:
        """Replace a parameter with others, in the optimizer too.

        Undoing restores the old parameter as it was; set its new value before that.
        """
        old = owner._parameters.pop(key)  # noqa: SLF001 - there is no public way to take one away
        for name, parameter in new.items():
            owner.register_parameter(name, parameter)

        def undo() -> None:
            for name in new:
                delattr(owner, name)
            owner.register_parameter(key, old)

        self._undo.append(undo)
        self._optimize(list(new.values()), like)
        if self.optimizer is not None and old is not None:
            self._stop_optimizing(old)

    def on_undo(self, undo: Callable[[], None]) -> None:
        """Add a function that `undo` calls."""
        self._undo.append(undo)

    def undo(self) -> None:
        """Undo all changes, the last one first. The model's parameters keep their values."""
        while self._undo:
            self._undo.pop()()
        self.changed.clear()

    def warn_if_unchanged(self, method: str, looked_for: str) -> None:
        """Warn that a method found nothing to change."""
        if not self.changed:
            warnings.warn(
                f"{method} changed nothing in {type(self.model).__name__}: it looked for "
                f"{looked_for} and found none. Leave it out, or see its card.",
                AspectWarning,
                stacklevel=3,
            )

    def _optimize(self, parameters: list[nn.Parameter], like: nn.Parameter) -> None:
        if self.optimizer is None:
            return
        for group in self.optimizer.param_groups:
            if any(p is like for p in group["params"]):
                group["params"] = [*group["params"], *parameters]

                def undo() -> None:
                    self._drop(parameters)

                self._undo.append(undo)
                return
        raise AspectError(
            "the optimizer does not train the parameter next to which new ones were added: give it "
            "all parameters of the model"
        )

    def _stop_optimizing(self, parameter: nn.Parameter) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            if any(p is parameter for p in group["params"]):
                self._drop([parameter])
                self._undo.append(functools.partial(_append, group, parameter))
                return

    def _drop(self, parameters: list[nn.Parameter]) -> None:
        assert self.optimizer is not None
        gone = {id(p) for p in parameters}
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        for parameter in parameters:
            self.optimizer.state.pop(parameter, None)


def _append(group: dict[str, Any], parameter: nn.Parameter) -> None:
    group["params"] = [*group["params"], parameter]


@functools.cache
def _joined(mixin: type, kind: type) -> type:
    """Return the joined class; the same one for the same pair, so that compilers recognise it."""
    return type(f"{mixin.__name__}{kind.__name__}", (mixin, kind), {"__module__": mixin.__module__})
