"""Damage as by disks, networks and attackers, drawn from a fixed seed."""

import copy

WEIRD = [
    *(None, True, -1, 0, 10**12, 10**30, 1e308, float("nan"), float("inf"), "", "x", "../x", "\0"),
    *([], [[]], {}, {"": None}, "9" * 5000, ["x", 1], [["x", {}]], {"step": -1}),
]


def damaged(content, draw):
    """Return bytes with one to three places damaged."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(content) + 1)
        end = min(len(content), at + draw.choice([1, 2, 8, 64]))
        kind = draw.choice(["flip", "cut", "drop", "double", "noise", "zeros"])
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at:end]
        elif kind == "double":
            content[at:at] = content[at:end]
        elif kind == "noise":
            content[at:end] = draw.randbytes(end - at)
        else:
            content[at:end] = bytes(end - at)
    return bytes(content)


def _places(value, path=()):
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _places(inner, (*path, key))


def altered(value, draw):
    """Return JSON data in which one value is missing, renamed, or changed."""
    value = copy.deepcopy(value)
    path = draw.choice(list(_places(value))[1:])
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    kind = draw.choice(["replace", "replace", "delete", "rename"])
    if kind == "replace" or isinstance(inner, list):
        inner[path[-1]] = draw.choice(WEIRD)
    elif kind == "delete":
        del inner[path[-1]]
    else:
        inner["another"] = inner.pop(path[-1])
    return value
