"""What the loop relies on of a model's parameters, and errors that name what breaks it.

Between two updates parameters stay what they are: the same objects in the same modules, of the same
shape and dtype, frozen or trained as at the start, with the same values. PyTorch counts the changes
of each tensor, so that a check takes less than a tenth of a microsecond per parameter. A change
that PyTorch does not count (`parameter.data`) is found by the bits of the values, at the start and
when the replicas are compared.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_plus.task import TaskError
from raytrain_plus.training.same_bits import same_bits

_INSTEAD = (
    "a forward may read parameters and not change them, since each logical rank must start from "
    "the same ones: compute the changed weight without storing it (a parametrization, "
    "torch.nn.functional), or change it in an aspect's `update` advice, after its yield"
)

_NOTHING = nullcontext()
_PARAMETERS = attrgetter("_parameters")
_VALUES = methodcaller("values")


class Weights:
    """Watches the parameters of a model.

    Args:
        model: the model, as it is trained.
        in_phases: check the parameters after each phase of a part. One check at the end of a step
            costs less, and misses changes where aspects change parameters between the phases.
    """

    def __init__(self, model: nn.Module, *, in_phases: bool = False) -> None:
        self._model = model
        self._at_start = dict(model.named_parameters(remove_duplicate=False))
        named = dict(model.named_parameters())
        self._names, self._all = [*named.keys()], [*named.values()]
        self._watch_modules()
        self._trained = [p.requires_grad for p in self._all]
        self._frozen = [place for place, trained in enumerate(self._trained) if not trained]
        self._kinds = [(p.shape, p.dtype, p.device) for p in self._all]
        self._memory = [p.data_ptr() for p in self._all]
        self._in_phases = in_phases
        self._before = self._versions()

    def begin_step(self) -> None:
        """Record the present values, which the parts of a step must not change.

        Raises:
            TaskError: a parameter was frozen or unfrozen for good since the start.
        """
        self._before = self._versions()
        self.check_trained("something between two steps")

    def check_trained(self, what: str) -> None:
        """Check that the same parameters are trained as at the start.

        Args:
            what: what has been run, for the error.

        Raises:
            TaskError: a parameter was frozen or unfrozen.
        """
        trained = [p.requires_grad for p in self._all]
        if trained != self._trained:
            place = next(i for i, now in enumerate(trained) if now != self._trained[i])
            raise TaskError(self._toggled(place, what))

    def changed(self) -> str | None:
        """Return the name of a parameter that was changed since the step began, or None."""
        now = self._versions()
        if now == self._before:
            return None
        pairs = zip(self._names, now, self._before, strict=True)
        return next(name for name, one, other in pairs if one != other)

    @contextmanager
    def each_phase(self) -> Iterator[None]:
        """Check the parameters after each phase inside, so that an error names the phase."""
        before, self._in_phases = self._in_phases, True
        try:
            yield
        finally:
            self._in_phases = before

    def phase(self, what: str) -> AbstractContextManager[None]:
        """Return the context for one phase of a part.

        Args:
            what: the phase, for the error.
        """
        return self.unchanged_by(what) if self._in_phases else _NOTHING

    @contextmanager
    def unchanged_by(self, what: str) -> Iterator[None]:
        """Check that what runs inside leaves all parameters alone.

        Args:
            what: what it is, for the error.

        Raises:
            TaskError: a parameter was changed, frozen or unfrozen.
        """
        before, trained = self._versions(), [p.requires_grad for p in self._all]
        yield
        now = self._versions()
        toggled = [p.requires_grad for p in self._all]
        if now == before and toggled == trained:
            return
        for place, name in enumerate(self._names):
            if now[place] != before[place]:
                raise TaskError(self.explain(what, name))
            if toggled[place] != trained[place]:
                raise TaskError(self._toggled(place, what))

    def check(self) -> None:
        """Check, before an update, that the model has the same parameters as at its start.

        Raises:
            TaskError: one was replaced, unfrozen, added or removed.
        """
        unfrozen = [place for place in self._frozen if self._all[place].requires_grad]
        if unfrozen:
            raise TaskError(self._toggled(unfrozen[0], "something"))
        held = self._all_held()
        if len(held) == len(self._held) and all(map(is_, held, self._held)):
            return
        now = dict(self._model.named_parameters(remove_duplicate=False))
        for name, parameter in self._at_start.items():
            if now.get(name, parameter) is not parameter:
                raise TaskError(
                    f"parameter {name!r} was replaced after the start, and the optimizer has the "
                    "one from before: change its values, in an aspect's `update` advice"
                )
        if now.keys() != self._at_start.keys():
            raise TaskError(
                "the model has other parameters than at its start: "
                f"{sorted(now.keys() ^ self._at_start.keys())}; make all of them in task.model(), "
                "or in an aspect's `fit` advice"
            )
        self._watch_modules()

    def check_kinds(self) -> None:
        """Check, after an update, that each parameter has its shape, dtype and device.

        Raises:
            TaskError: one has changed.
        """
        memory = [p.data_ptr() for p in self._all]
        if memory == self._memory:
            return
        self._memory = memory
        for name, parameter, kind in zip(self._names, self._all, self._kinds, strict=True):
            now = (parameter.shape, parameter.dtype, parameter.device)
            if now != kind:
                raise TaskError(
                    f"the update makes parameter {name!r} one of shape {tuple(now[0])}, {now[1]}, "
                    f"on {now[2]}, from {tuple(kind[0])}, {kind[1]}, on {kind[2]}: an update must "
                    "keep all three"
                )

    def copies(self) -> list[Tensor]:
        """Return copies of all values."""
        return [p.detach().clone() for p in self._all]

    def differing(self, copies: list[Tensor]) -> list[str]:
        """Return the names of the parameters whose bits are not those of the copies."""
        return [
            name
            for name, parameter, copy in zip(self._names, self._all, copies, strict=True)
            if not same_bits(parameter, copy)
        ]

    @torch.no_grad()
    def changed_by(self, run: Callable[[], None]) -> list[str]:
        """Return the names of the parameters that a function changes; their values are put back.

        The function runs on the present values and on others: clamping, for example, changes
        nothing the second time.
        """
        own = self.copies()
        try:
            for scale in (1.0, 1.5):
                for parameter in self._all:
                    if parameter.is_floating_point():
                        parameter.mul_(scale)
                before = self.copies()
                with contextlib.suppress(ArithmeticError, RuntimeError), torch.enable_grad():
                    run()
                changed = self.differing(before)
                if changed:
                    return changed
            return []
        finally:
            for parameter, value in zip(self._all, own, strict=True):
                parameter.copy_(value)

    def explain(self, what: str, name: str) -> str:
        """Return the sentence that says that something changes a parameter."""
        return f"{what} changes parameter {name!r}: {_INSTEAD}"

    def _versions(self) -> list[int]:
        return [p._version for p in self._all]  # noqa: SLF001 - how often each was changed

    def _watch_modules(self) -> None:
        self._modules = [*self._model.modules()]
        self._inner = [module._modules for module in self._modules]  # noqa: SLF001
        self._held = self._all_held()

    def _all_held(self) -> list[Any]:
        """Return what the modules that are watched hold as parameters and as modules."""
        parameters = map(_VALUES, map(_PARAMETERS, self._modules))
        return [*chain.from_iterable(chain(parameters, map(_VALUES, self._inner)))]

    def _toggled(self, place: int, what: str) -> str:
        to = "switches on" if self._all[place].requires_grad else "switches off"
        return (
            f"{what} {to} requires_grad of parameter {self._names[place]!r}, which no other worker "
            "and no checkpoint knows of: give every parameter that is ever trained requires_grad "
            "in task.model(), and keep it from being trained by an aspect that freezes it in its "
            "`step` advice and undoes that after its yield (LayerFreezing is one)"
        )
