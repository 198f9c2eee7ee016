"""Where models of known families have their residual branches.

Classes are found by their import path, as in `transformer_layers`.
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
"""Class of a block -> its attributes whose outputs are added to a shortcut."""

WHOLE: Mapping[str, None] = {
    "transformers.models.gpt2.modeling_gpt2.GPT2Block": None,
    "transformers.models.bert.modeling_bert.BertLayer": None,
}
"""Classes of blocks that map a tensor to one of the same shape and contain the shortcuts."""


class Branch(NamedTuple):
    """A module that a model can skip for a step.

    Attributes:
        name: its name in the model.
        module: the module.
        whole: whether its output contains the shortcut. If so, skipping it returns its input.
            Otherwise its output is added to a shortcut, and skipping it returns zero.
    """

    name: str
    module: nn.Module
    whole: bool


def residual_branches(model: nn.Module) -> list[Branch]:
    """Return the residual branches of a model, from its input to its output.

    Raises:
        AspectError: the model has no known residual branch.
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
            f"{type(model).__name__} has no known residual branch: blocks of these classes "
            f"or of subclasses of them were looked for: {looked_for}. Build the model of them, or "
            "do without this method"
        )
    return found
