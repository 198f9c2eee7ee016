"""A model's buffers, kept independent of which worker computes which logical rank.

Every logical rank's forward starts from the buffers as they stood at the start of the step, never
from what the logical rank before it on the same worker left behind. Afterwards a floating buffer
(a BatchNorm statistic) moves by the mean of its changes over all logical ranks, summed in the same
tree as the gradient; an integer buffer (a counter) takes the value that logical rank 0 gave it.

A module may also keep a buffer as a cache, and an attribute that says whether the cache is valid: a
table that is made for a length, for example. Such buffers and attributes are put back together
(`attributes.py`), and the table never becomes part of the state.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raytrain_plus.task import TaskError
from raytrain_plus.training.attributes import Attributes, Slot, same
from raytrain_plus.training.state import tensor_bytes


class Buffers:
    """The buffers of a model during one step.

    Args:
        model: the model.
        task: the user's task, to put its attributes back like those of the model's modules.

    Attributes:
        start: all buffers as they were at the last snapshot, the floating ones first.
        floating: tensors like the floating buffers, in name order.
        integer_bytes: the size of all other buffers together, in bytes.
        attributes: what the model and the task hold in addition to parameters and buffers.
        cached: the places, in `start`, of buffers that are caches.
    """

    def __init__(self, model: nn.Module, task: object | None = None) -> None:
        places: list[tuple[nn.Module, str, Tensor]] = []
        seen: set[int] = set()
        self.names: list[str] = []
        self._modules = [
            (module, name, {key for key, _ in module._buffers.items()})  # noqa: SLF001
            for name, module in _modules(model)
        ]
        self._held = [module._buffers for module, _, _ in self._modules]  # noqa: SLF001
        self._size = sum(map(len, self._held))
        self._empty = [
            (module, key)
            for _, module in _modules(model)
            for key, value in module._buffers.items()  # noqa: SLF001
            if value is None
        ]
        for _, module in _modules(model):
            for key, value in sorted(module.named_buffers(recurse=False)):
                if id(value) not in seen:
                    seen.add(id(value))
                    places.append((module, key, value))
        floating = [p for p in places if p[2].is_floating_point() or p[2].is_complex()]
        integer = [p for p in places if not (p[2].is_floating_point() or p[2].is_complex())]
        self._places = [*floating, *integer]
        names = {id(module): name for name, module in _modules(model)}
        self.names = [f"{names[id(m)]}.{key}".lstrip(".") for m, key, _ in self._places]
        self._n_floating = len(floating)
        self.start = [value.detach().clone() for _, _, value in self._places]
        self.floating = self.start[: self._n_floating]
        self.integer_bytes = sum(t.numel() * t.element_size() for t in self.start[len(floating) :])
        self.attributes = Attributes(model, task)
        self.cached: set[int] = set()
        self._known: set[tuple[int, str]] = set()

    def snapshot(self) -> None:
        """Record the present values, from which every logical rank starts."""
        if not self._places:
            return
        if self.attributes.is_held:  # caches are where the last part has left them
            return
        for start, value in zip(self.start, self.values(), strict=True):
            start.copy_(value.detach())

    def restore(self) -> None:
        """Put the values of the last snapshot back, in place, and the attributes as well.

        Raises:
            TaskError: an attribute was changed in place and cannot be put back.
        """
        held = self.attributes.is_held
        for place, (module, key, value) in enumerate(self._places):
            if not (held and place in self.cached):
                value.detach().copy_(self.start[place])
                # A forward may have put another one here.
                module._buffers[key] = value  # noqa: SLF001
        for module, key in () if held else self.appeared():
            if (module, key) in self._empty:
                module._buffers[key] = None  # noqa: SLF001
            else:
                del module._buffers[key]  # noqa: SLF001
                module._non_persistent_buffers_set.discard(key)  # noqa: SLF001
        for slot in self.attributes.put_back():
            raise TaskError(
                f"{slot.name} is changed in place by the model's forward, from some step on: make "
                "it a buffer (self.register_buffer), which every worker and checkpoint holds"
            )

    def appeared(self) -> list[tuple[nn.Module, str]]:
        """Return the buffers that a forward has added, or has set where there was None."""
        found = []
        if self._empty:
            found = [(m, k) for m, k in self._empty if _buffer(m, k) is not None]
        if sum(map(len, self._held)) == self._size:
            return found
        for module, _, keys in self._modules:
            if len(module._buffers) != len(keys):  # noqa: SLF001
                found += [(module, key) for key, _ in module._buffers.items() if key not in keys]  # noqa: SLF001
        return found

    def has_new(self) -> bool:
        """Say whether a buffer has appeared that had not before."""
        appeared = self.appeared()
        if not appeared:
            return False
        found = {(id(module), key) for module, key in appeared}
        new = found - self._known
        self._known |= found
        return bool(new)

    def module_of(self, place: int) -> nn.Module:
        """Return the module that holds a buffer, by its place in `start`."""
        return self._places[place][0]

    def rebound(self) -> set[int]:
        """Return the places, in `start`, where a forward has put another tensor."""
        return {
            place
            for place, (module, key, value) in enumerate(self._places)
            if _buffer(module, key) is not value
        }

    def moved_in(self, slots: Sequence[Slot]) -> set[int]:
        """Return the places of buffers that differ from the snapshot, in some slots' modules."""
        modules = [slot.module for slot in slots]
        return {
            place
            for place, (value, start) in enumerate(zip(self.values(), self.start, strict=True))
            if any(self._places[place][0] is module for module in modules)
            and not same(value.detach(), start)
        }

    def describe(self, places: set[int]) -> dict[tuple[int, str], Tensor | None]:
        """Return copies of the buffers at some places, and of all that have appeared."""
        here = [(self._places[place][0], self._places[place][1]) for place in places]
        here += self.appeared()
        return {(id(m), f"buffer {k}"): _copy_of(_buffer(m, k)) for m, k in here}

    def names_of(self, places: Sequence[tuple[nn.Module, str]]) -> list[str]:
        """Return what some buffers are called in an error."""
        names = {id(module): name for module, name, _ in self._modules}
        return [f"buffer {f'{names[id(m)]}.{key}'.lstrip('.')!r}" for m, key in places]

    @contextmanager
    def replayed(self, keep: set[int]) -> Iterator[None]:
        """Compute a part again inside this context, from what the first time has left in Python.

        Args:
            keep: places of the buffers that it finds as the first time has left them. All others
                are those of the snapshot. Afterwards all are what the first time has left.
        """
        left = [_buffer(module, key) for module, key, _ in self._places]
        for place, (module, key, _) in enumerate(self._places):
            now = _buffer(module, key)
            stays = place in keep and now is not None
            module._buffers[key] = now.detach().clone() if stays else self.start[place].clone()  # type: ignore[union-attr]  # noqa: SLF001
        try:
            yield
        finally:
            for (module, key, _), value in zip(self._places, left, strict=True):
                module._buffers[key] = value  # noqa: SLF001

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Give the model copies of the last snapshot inside this context.

        A graph may keep these copies. The model's own buffers are not touched.
        """
        own = self.values()
        for (module, key, _), start in zip(self._places, self.start, strict=True):
            module._buffers[key] = start.clone()  # noqa: SLF001
        before = self.appeared()
        try:
            with self.attributes.suspended():
                yield
        finally:
            for (module, key, _), value in zip(self._places, own, strict=True):
                module._buffers[key] = value  # noqa: SLF001
            for module, key in self.appeared():
                if (module, key) not in before:
                    module._buffers[key] = None  # noqa: SLF001
                    if (module, key) not in self._empty:
                        del module._buffers[key]  # noqa: SLF001

    def changes(self) -> list[Tensor]:
        """Return how far each floating buffer has moved since the snapshot.

        A value that has not moved gives exactly zero, also if it is infinite. That zero is
        negative, since adding a positive zero would turn the buffer's own negative zeros positive.

        Raises:
            TaskError: a buffer has another shape or dtype now, or a new one has appeared.
        """
        if not self._places:
            return []
        values = self.values()
        self._check(values)
        with torch.no_grad():
            return [
                -torch.zeros_like(start)
                if place in self.cached
                else torch.where(value == start, -torch.zeros_like(start), value - start)
                for place, (value, start) in enumerate(zip(values, self.floating, strict=False))
            ]

    def integers(self) -> bytes:
        """Return the present values of all buffers that are not floating."""
        if not self.integer_bytes:
            return b""
        values = enumerate(self.values())
        return b"".join(
            tensor_bytes(self.start[place] if place in self.cached else value)
            for place, value in values
            if place >= self._n_floating
        )

    def commit(self, mean_changes: Sequence[Tensor], integers: bytes) -> None:
        """Set the values that end the step: the same on every worker."""
        self.restore()
        if not self._places:
            return
        values = [value.detach() for value in self.values()]
        for value, change in zip(values, mean_changes, strict=False):
            value.add_(change)
        offset = 0
        for value in values[self._n_floating :]:
            size = value.numel() * value.element_size()
            if size:
                raw = torch.frombuffer(
                    bytearray(integers[offset : offset + size]), dtype=value.dtype
                )
                value.copy_(raw.view(value.shape))
            offset += size

    def values(self) -> list[Tensor]:
        """Return the model's buffers in the order of `start`; no copies.

        Raises:
            TaskError: a buffer was removed.
        """
        found = [_buffer(module, key) for module, key, _ in self._places]
        if any(value is None for value in found):
            name = next(n for n, v in zip(self.names, found, strict=True) if v is None)
            raise TaskError(f"the forward removes buffer {name!r}: buffers are state and must stay")
        return found  # type: ignore[return-value]

    def copies(self) -> list[Tensor]:
        """Return copies of the present values."""
        return [value.detach().clone() for value in self.values()]

    def differing(self, copies: Sequence[Tensor]) -> list[str]:
        """Return the names of the buffers whose bits are not those of the copies."""
        pairs = zip(self.names, self.values(), copies, strict=True)
        return [name for name, value, copy in pairs if not same(value.detach(), copy)]

    def _check(self, values: Sequence[Tensor]) -> None:
        for place, (value, start) in enumerate(zip(values, self.start, strict=True)):
            if place not in self.cached and (
                value.shape != start.shape or value.dtype != start.dtype
            ):
                raise TaskError(
                    f"the forward makes buffer {self.names[place]!r} another tensor, of shape "
                    f"{tuple(value.shape)} and {value.dtype} instead of {tuple(start.shape)} and "
                    f"{start.dtype}: buffers are state and must keep both; compute what depends "
                    "on the input without a buffer, or register it at its largest size"
                )


def _buffer(module: nn.Module, key: str) -> Tensor | None:
    held = module._buffers  # noqa: SLF001 - in a ScriptModule it is no dict
    return held[key] if key in held else None  # noqa: SIM401


def _copy_of(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.detach().clone()


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return sorted(model.named_modules(), key=lambda named: named[0])
