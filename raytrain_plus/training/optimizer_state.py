"""An optimizer's state as tensors and plain data, as another worker takes it.

What counts as state is everything that the optimizer object holds: `state` (under parameters and
under any other key), `param_groups`, its own attributes, those of an optimizer that it wraps, and
what an overridden `state_dict()` adds. The data is what JSON can hold; a container's type, a float
that is not finite, a shared object and a tensor are dictionaries with one tag, see `encoding.py`.

Functions are constants. Objects that exist since the optimizer was built are constants or are
filled in place. An object that appears later has no counterpart in another worker: it is refused by
its name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from raytrain_plus.task import TaskError
from raytrain_plus.training.decoding import Decoder
from raytrain_plus.training.encoding import Encoded, Encoder, attributes_of
from raytrain_plus.training.same_bits import same_bits
from raytrain_plus.training.structure import Look, UnknownKindError, is_plain

_INITIAL = ("lr", "initial_lr", "params")  # what a group holds that is no state of its own
_DAMAGED = KeyError, TypeError, IndexError, AttributeError, RuntimeError, OverflowError
_SAVED_APART = ("state", "param_groups")


@dataclass(frozen=True)
class _Reading:
    """What `read` has found, for as long as the structure is the same.

    Attributes:
        facts: those of a look at the structure.
        places: for each tensor of the state, which of the tensors of a look it is.
        groups: the encoded groups.
        rest: the encoded rest, without the settings that differ from those at the start.
    """

    facts: list[Any]
    places: dict[str, int]
    groups: list[Encoded]
    rest: dict[str, Encoded]


class OptimizerState:
    """Reads and fills the state of one optimizer.

    Args:
        optimizer: as it was built, before its first step.
        model: whose parameters it trains.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self.optimizer = optimizer
        self._model = model
        self._names = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
        self._by_name = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._device = next(iter(model.parameters())).device
        self._packages = {kind.__module__.partition(".")[0] for kind in type(optimizer).__mro__} - {
            "torch",
            "builtins",
            "typing",
            "abc",
        }
        encoder = self._encoder(None)
        _, built = self._read(encoder)
        self._known = encoder.known
        self._groups = built["groups"]
        self._params = built["params"]
        self._attributes = built["attributes"]
        self._saved = built["saved"]
        self._reading: _Reading | None = None

    def read(self) -> tuple[dict[str, Tensor], list[Encoded], Encoded]:
        """Return the state's tensors by name, its groups, and the rest of it; no copies.

        The whole is encoded when its structure has changed. The parts of the result are not to be
        changed; the mappings themselves are the caller's.

        Raises:
            TaskError: something in it cannot be carried, by the optimizer's and its own name.
        """
        look, known = self._look(), self._reading
        if look is None or known is None or look.facts != known.facts:
            encoder = self._encoder(self._known)
            groups, rest = self._encode(encoder)
            self._reading = None if look is None else _reading(look, encoder, groups, rest)
            tensors = encoder.tensors
        else:
            tensors = {name: look.tensors[i].detach() for name, i in known.places.items()}
            groups = [
                {k: group[k] if is_plain(group[k]) else v for k, v in encoded.items()}
                for group, encoded in zip(self.optimizer.param_groups, known.groups, strict=True)
            ]
            rest = dict(known.rest)
        changed = [
            f"{place}/{key}"
            for place, group in enumerate(groups)
            for key, value in group.items()
            if key not in _INITIAL and value != self._at_build(place).get(key, ...)
        ]
        if changed:
            rest["changed"] = changed
        return tensors, groups, rest

    def _look(self) -> Look | None:
        """Look at the structure of the state. None: the state must be encoded each time."""
        optimizer = self.optimizer
        if self._has_own_state_dict():
            return None
        look = Look()
        try:
            look.at(optimizer.state)
            look.facts.append(len(optimizer.param_groups))
            for group in optimizer.param_groups:
                look.at_settings(group)
            for name, value in attributes_of(optimizer):
                look.facts.append(name)
                if value is optimizer.param_groups:
                    continue
                look.at(value)
        except UnknownKindError:
            return None
        # Keys and tensors of the state may be, or lie in, tensors of the model.
        look.facts += [tensor.data_ptr() for tensor in self._by_name.values()]
        return look

    def _encode(self, encoder: Encoder) -> tuple[list[Encoded], dict[str, Encoded]]:
        """Return the groups, and the rest without the settings that have changed."""
        with_tensors, found = self._read(encoder)
        rest = {"state": found["state"]}
        attributes = {
            name: value
            for name, value in found["attributes"].items()
            if name in with_tensors or value != self._attributes.get(name, ...)
        }
        optional = {
            "attributes": attributes,
            "params": found["params"] if found["params"] != self._params else None,
            "saved": found["saved"] if found["saved"] != self._saved else None,
        }
        rest |= {key: value for key, value in optional.items() if value}
        return found["groups"], rest

    def load(
        self, tensors: Mapping[str, Tensor], groups: list[Encoded], rest: Mapping[str, Encoded]
    ) -> None:
        """Take over a state that `read` returned.

        Raises:
            ValueError: it is of another optimizer, or damaged.
        """
        self._reading = None
        try:
            decoder = self._fill(tensors, groups, rest)
            if "saved" in rest and not self._is_saved(tensors, rest["saved"]):
                self._load_saved(decoder, rest["saved"])
                self._fill(tensors, groups, rest)
        except _DAMAGED as error:
            raise ValueError(f"the optimizer's state cannot be read: {error!r}") from error

    def check(self, tensors: Mapping[str, Tensor], groups: list[Encoded], rest: Encoded) -> None:
        """Check that all tensors of a state are there.

        Raises:
            ValueError: some are missing.
        """
        missing = sorted({*_tensor_names([groups, rest])} - tensors.keys())
        if missing:
            raise ValueError(f"tensors of the optimizer's state are missing: {missing[:5]}")

    def _encoder(self, known: Mapping[str, str] | None) -> Encoder:
        named = f"optimizer {type(self.optimizer).__name__}"
        return Encoder(self._by_name, self._device, self._packages, named, known)

    def _read(self, encoder: Encoder) -> tuple[set[str], dict[str, Any]]:
        """Return the whole state, and which attributes hold tensors that nothing else holds."""
        optimizer = self.optimizer
        found: dict[str, Any] = {
            "state": encoder.encode(optimizer.state, "optimizer"),
            "groups": [],
            "params": [],
        }
        encoder.note(optimizer.param_groups, "optimizer groups")
        for place, group in enumerate(optimizer.param_groups):
            path = f"optimizer groups/{place}"
            encoder.note(group, path)
            found["groups"].append(
                {k: encoder.encode(v, f"{path}/{k}") for k, v in group.items() if k != "params"}
            )
            self._check_members(group["params"])
            found["params"].append(encoder.encode(group["params"], f"{path}/params"))
        with_tensors, attributes = set(), {}
        encoder.note(optimizer, "optimizer itself")
        for name, value in attributes_of(optimizer):
            before = len(encoder.tensors)
            attributes[name] = encoder.encode(value, f"optimizer itself/{name}")
            if len(encoder.tensors) > before:
                with_tensors.add(name)
        found["attributes"] = attributes
        found["saved"] = {
            key: encoder.encode(value, f"optimizer state_dict/{key}")
            for key, value in self._own_state_dict().items()
        }
        return with_tensors, found

    def _check_members(self, params: Sequence[Tensor]) -> None:
        if any(id(parameter) not in self._names for parameter in params):
            raise TaskError("the optimizer holds a tensor that is no parameter of the model")

    def _own_state_dict(self) -> dict[str, Any]:
        """Return what an overridden `state_dict()` adds."""
        if not self._has_own_state_dict():
            return {}
        said = self.optimizer.state_dict()
        return {key: value for key, value in said.items() if key not in _SAVED_APART}

    def _has_own_state_dict(self) -> bool:
        own = getattr(type(self.optimizer), "state_dict", Optimizer.state_dict)
        return own is not Optimizer.state_dict

    def _at_build(self, place: int) -> Mapping[str, Encoded]:
        group: Mapping[str, Encoded] = self._groups[place] if place < len(self._groups) else {}
        return group

    def _decoder(self, tensors: Mapping[str, Tensor]) -> Decoder:
        return Decoder(tensors, self._by_name, self._device, self._packages)

    def _fill(
        self, tensors: Mapping[str, Tensor], groups: list[Encoded], rest: Mapping[str, Encoded]
    ) -> Decoder:
        optimizer, decoder = self.optimizer, self._decoder(tensors)
        state = decoder.decode(rest["state"], optimizer.state, "optimizer")
        if state is not optimizer.state:
            optimizer.state = state
        members = rest.get("params", self._params)
        if len(groups) != len(members):
            raise ValueError(f"it has {len(groups)} parameter groups, and this one {len(members)}")
        del optimizer.param_groups[len(groups) :]
        decoder.note(optimizer.param_groups, "optimizer groups")
        for place, (saved, params) in enumerate(zip(groups, members, strict=True)):
            path = f"optimizer groups/{place}"
            if place == len(optimizer.param_groups):
                optimizer.param_groups.append({"params": []})
            group = optimizer.param_groups[place]
            decoder.note(group, path)
            held = {k: decoder.decode(v, group.get(k), f"{path}/{k}") for k, v in saved.items()}
            held["params"] = decoder.decode(params, group["params"], f"{path}/params")
            for key in group.keys() - held.keys():
                del group[key]
            group.update(held)
        decoder.note(optimizer, "optimizer itself")
        given = rest.get("attributes", {})
        current = dict(attributes_of(optimizer))
        for name in current.keys() - self._attributes.keys() - given.keys():
            del vars(optimizer)[name]
        for name, value in {**self._attributes, **given}.items():
            decoder.set_attribute(optimizer, name, value, f"optimizer itself/{name}")
        return decoder

    def _is_saved(self, tensors: Mapping[str, Tensor], saved: Encoded) -> bool:
        """Say whether `state_dict()` already returns what it should."""
        encoder = self._encoder(self._known)
        _, found = self._read(encoder)
        if found["saved"] != saved:
            return False
        return all(
            name in tensors and same_bits(tensors[name], tensor)
            for name, tensor in encoder.tensors.items()
        )

    def _load_saved(self, decoder: Decoder, saved: Encoded) -> None:
        """Give the optimizer's own `load_state_dict()` what can be set in no other way."""
        optimizer = self.optimizer
        whole = "_optimizer_state_dict_pre_hooks" in vars(optimizer)
        base = Optimizer.state_dict(optimizer) if whole else {}
        # Its containers stay: others, such as a wrapper, may hold them.
        before = {k: v for k, v in vars(optimizer).items() if k in _SAVED_APART}
        more = {k: decoder.decode(v, None, f"optimizer state_dict/{k}") for k, v in saved.items()}
        optimizer.load_state_dict({**base, **more})
        vars(optimizer).update(before)


def _reading(
    look: Look, encoder: Encoder, groups: list[Encoded], rest: Mapping[str, Encoded]
) -> _Reading | None:
    """Keep what was read; None if some tensor of it was not seen by the look."""
    seen = {id(tensor): place for place, tensor in enumerate(look.tensors)}
    named = encoder.sources()
    if any(id(tensor) not in seen for tensor in named.values()):
        return None
    places = {name: seen[id(tensor)] for name, tensor in named.items()}
    return _Reading(look.facts, places, groups, dict(rest))


def plain_entries(groups: Sequence[Encoded], rest: Mapping[str, Encoded]) -> dict[str, Encoded]:
    """Return what a digest covers in addition to the tensors: everything but settings, by name.

    Raises:
        ValueError: they are damaged.
    """
    try:
        return _plain_entries(groups, rest)
    except _DAMAGED as error:
        raise ValueError(f"the optimizer's state cannot be read: {error!r}") from error


def _plain_entries(groups: Sequence[Encoded], rest: Mapping[str, Encoded]) -> dict[str, Encoded]:
    entries: dict[str, Encoded] = {}
    for at, (key, held) in enumerate(_pairs(rest["state"]) or []):
        name = key["parameter"] if isinstance(key, dict) and "parameter" in key else f"[{at}]"
        inner = _pairs(held)
        if inner is None:
            entries[f"optimizer/{name}"] = [key, _bare(held)]
            continue
        for own, value in inner:
            if not (isinstance(value, dict) and "tensor" in value):
                entries[f"optimizer/{name}/{_bare(own)}"] = _bare(value)
    for changed in rest.get("changed", []):
        place, _, key = changed.partition("/")
        entries[f"groups/{changed}"] = _bare(groups[int(place)].get(key))
    for part in ("attributes", "params", "saved"):
        if part in rest:
            entries[part] = _bare(rest[part])
    return entries


def _tensor_names(encoded: Encoded) -> Iterator[str]:
    if isinstance(encoded, dict):
        if "tensor" in encoded:
            yield str(encoded["tensor"])
        encoded = list(encoded.values())
    if isinstance(encoded, list):
        for one in encoded:
            yield from _tensor_names(one)


def _pairs(encoded: Encoded) -> list[Encoded] | None:
    """Return an encoded mapping's pairs; None if it is none."""
    if not isinstance(encoded, dict):
        return None
    for tag in ("dict", "OrderedDict"):
        if tag in encoded:
            pairs: list[Encoded] = encoded[tag]
            return pairs
    return encoded["defaultdict"][1] if "defaultdict" in encoded else None


def _bare(encoded: Encoded) -> Encoded:
    """Leave out how tensors are laid out in memory: equal values have equal digests."""
    if isinstance(encoded, list):
        return [_bare(one) for one in encoded]
    if isinstance(encoded, dict):
        if "tensor" in encoded:
            return {"tensor": encoded["tensor"]}
        return {key: _bare(value) for key, value in encoded.items()}
    return encoded
