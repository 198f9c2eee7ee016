"""Where models of known families keep their residual branches.

Classes are known by their path, as in `transformer_layers`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from raytrain_plus.algorithms.aspect import AspectError
from raytrain_plus.algorithms.transformer_layers import known

BRANCHES: Mapping[str, Sequence[str]] = {
    "raytrain_plus.models.resnet.ResidualBlock": ("residual",),
    "raytrain_plus.models.gpt.Block": ("attention", "feed_forward"),
}
"""Class of a block -> its attributes that are added to a shortcut."""

WHOLE: Mapping[str, None] = {
    "transformers.models.gpt2.modeling_gpt2.GPT2Block": None,
    "transformers.models.bert.modeling_bert.BertLayer": None,
}
"""Classes of blocks that map a tensor to one of its shape, shortcuts included."""


class Branch(NamedTuple):
    """A module that a model can do without for a step.

    Attributes:
        name: in the model.
        module: the module.
        whole: whether its output contains the shortcut, so that to skip it is to return its input;
            otherwise its output is added to a shortcut, and to skip it is to return zero.
    """

    name: str
    module: nn.Module
    whole: bool


def residual_branches(model: nn.Module) -> list[Branch]:
    """Return the residual branches of a model, from its input to its output.

    Raises:
        AspectError: it has none that is known.
    """
    found: list[Branch] = []
    for name, block in model.named_modules():
        if known(block, WHOLE) is not None:
            found.append(Branch(name, block, whole=True))
        _, keys = known(block, BRANCHES) or ("", ())
        found += [
            Branch(f"{name}.{key}".lstrip("."), getattr(block, key), whole=False) for key in keys
        ]
    if not found:
        looked_for = ", ".join([*BRANCHES, *WHOLE])
        raise AspectError(
            f"{type(model).__name__} has no residual branch that is known: blocks of these classes "
            f"or of subclasses of them were looked for: {looked_for}. Build the model of them, or "
            "do without this method"
        )
    return found
