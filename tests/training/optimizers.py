# ruff: noqa: ARG002 - the base class names what its subclasses may use
"""Optimizers that keep their state in all places where published optimizers keep it."""

import collections
import random

import torch
from torch.optim import Optimizer


class Base(Optimizer):
    """Gradient descent, scaled by the result of `scale`, in which subclasses keep their state."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, {"lr": 0.1, **settings})

    def scale(self, group, p):
        return 1.0

    def begin(self):
        pass

    @torch.no_grad()
    def step(self, closure=None):
        self.begin()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad * self.scale(group, p), alpha=float(group["lr"]))


class Listed(Base):
    """Lists, tuples and nested dictionaries of tensors under each parameter, as in SOAP."""

    def scale(self, group, p):
        state = self.state[p]
        if not state:
            state["momenta"] = [torch.zeros_like(p), torch.zeros_like(p)]
            state["nested"] = {"a": (torch.ones(()), [torch.ones(2).bfloat16()]), 3: None}
            state["flag"], state["name"], state["bounds"] = True, "x", (-0.0, float("inf"))
        for m, beta in zip(state["momenta"], (0.3, 0.9), strict=True):
            m.mul_(beta).add_(p.grad)
        state["nested"]["a"][0].mul_(0.9)
        return state["nested"]["a"][0] * sum(m.mean() for m in state["momenta"])


class History(Base):
    """A history of bounded length in a deque, and one in a growing list, as in LBFGS."""

    def scale(self, group, p):
        state = self.state[p]
        state.setdefault("old", collections.deque(maxlen=2)).append(p.grad.clone())
        state.setdefault("norms", []).append(p.grad.norm().item())
        return sum(g.mean() for g in state["old"]) + sum(state["norms"])


class InGroup(Base):
    """A tensor and counts in the parameter group, as in Prodigy."""

    def scale(self, group, p):
        group["d"] = torch.as_tensor(group.get("d", 1.0)) * 0.9
        group["k"] = group.get("k", 0) + 1
        return group["d"] / group["k"]


class KeyedByText(Base):
    """State under keys that are not parameters, from the start, as in MADGRAD."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.state["k"] = torch.tensor([0])
        self.state["all"] = {"calls": 0}

    def scale(self, group, p):
        self.state["k"] += 1
        self.state["all"]["calls"] += 1
        return 1 / (self.state["k"] + self.state["all"]["calls"])


class OwnAttributes(Base):
    """Numbers, tensors and lists in attributes of its own, some of which appear later."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.steps, self.weight, self.seen = 0, torch.ones(()), []

    def scale(self, group, p):
        self.steps += 1
        self.weight.mul_(0.9)
        self.seen.append(self.steps)
        self.late = (len(self.seen), float("nan"))
        return self.weight / self.steps / self.late[0]


class ById(Base):
    """A table by the parameters' `id` and address, which differ in each process."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.table, self.places = {}, {}

    def scale(self, group, p):
        self.table[id(p)] = self.table.get(id(p), 0) + 1
        self.places.setdefault((p.data_ptr(), p.dtype), torch.ones(())).mul_(0.9)
        return self.places[p.data_ptr(), p.dtype] / self.table[id(p)]


class Hidden(Base):
    """A count that is only in its own `state_dict()`."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.count, self.set_count = _counter()

    def scale(self, group, p):
        return 1 / self.count()

    def state_dict(self):
        return super().state_dict() | {"hidden": self.count(0)}

    def load_state_dict(self, state):
        self.set_count(state.pop("hidden"))
        super().load_state_dict(state)


def _counter():
    n = 0

    def count(more=1):
        nonlocal n
        n += more
        return n

    def set_to(value):
        nonlocal n
        n = value

    return count, set_to


class Wrapped(Base):
    """An optimizer around another, which shares its groups, with slow weights as in Lookahead."""

    def __init__(self, parameters):
        super().__init__(list(parameters))
        self.inner = torch.optim.Adam(self.param_groups[0]["params"], lr=0.01)
        self.param_groups = self.inner.param_groups
        self.k = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.k += 1
        for p in self.param_groups[0]["params"]:
            slow = self.state[p].setdefault("slow", p.clone())
            if self.k % 2 == 0:
                p.copy_(slow.lerp_(p, 0.5))


class Drawing(Base):
    """Draws from generators of its own."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.generator = torch.Generator().manual_seed(5)
        self.chance = random.Random(7)

    def scale(self, group, p):
        return torch.rand((), generator=self.generator) + self.chance.random()


class LaidOut(Base):
    """State with other strides than the parameter's, in eight bits, and an object in two places."""

    def scale(self, group, p):
        state = self.state[p]
        if not state:
            state["turned"] = torch.ones(3, 5).t()
            state["part"] = torch.ones(4, 6)[:, :3]
            state["eight"] = torch.zeros(7, dtype=torch.int8)
            state["same"] = state["eight"]
            state["view"] = p.data
        state["turned"].mul_(0.9)
        state["same"].add_(1)
        return (
            state["turned"].sum() * state["part"].sum() / state["eight"][0] + state["view"].mean()
        )


class Growing(Base):
    """Adds the last parameters only at its second step, as their own group."""

    def __init__(self, parameters):
        self.later = list(parameters)
        super().__init__(self.later[:2])

    def begin(self):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 2:
            self.add_param_group({"params": self.later[2:], "lr": 0.05})


class TensorRate(torch.optim.Adam):
    """A learning rate and betas that are tensors."""

    def __init__(self, parameters):
        betas = torch.tensor(0.9), torch.tensor(0.95)
        super().__init__(parameters, lr=torch.tensor(0.01), betas=betas)


CARRIED = {
    kind.__name__: kind
    for kind in (
        Listed,
        History,
        InGroup,
        KeyedByText,
        OwnAttributes,
        ById,
        Hidden,
        Wrapped,
        Drawing,
        LaidOut,
        Growing,
        TensorRate,
    )
}


class Tracker:
    """An object."""

    def __init__(self):
        self.count = 0


class KeepsObject(Base):
    def scale(self, group, p):
        tracker = self.state[p].setdefault("tracker", Tracker())
        tracker.count += 1
        return 1 / tracker.count


class KeepsSparse(Base):
    def scale(self, group, p):
        self.state[p]["sparse"] = torch.eye(3).to_sparse()
        return 1.0


class KeepsComplex(Base):
    def scale(self, group, p):
        self.state[p]["phase"] = torch.ones(2, dtype=torch.complex128)
        return 1.0


class SharesMemory(Base):
    def scale(self, group, p):
        if not self.state[p]:
            flat = torch.ones(6)
            self.state[p] |= {"flat": flat, "head": flat[:3]}
        return self.state[p]["head"].mul_(0.9).sum()


class InClosure(Hidden):
    state_dict, load_state_dict = Optimizer.state_dict, Optimizer.load_state_dict


class InClass(Base):
    calls = 0

    def scale(self, group, p):
        type(self).calls += 1
        return 1 / self.calls


REFUSED = {
    KeepsObject: "KeepsObject keeps an object of type .*Tracker in its state '0.weight/tracker'",
    KeepsSparse: "KeepsSparse keeps a tensor of layout .*sparse.* in its state '0.weight/sparse'",
    KeepsComplex: "KeepsComplex keeps a tensor of torch.complex128.* in its state '0.weight/phase'",
    SharesMemory: "optimizer/0.bias/.* and optimizer/0.bias/.* share memory",
    InClosure: "state of the optimizer InClosure differs in another worker after one more step",
    InClass: "state of the optimizer InClass differs in another worker after one more step",
}
