"""Labels as class probabilities, and their mixing (Zhang et al. 2017, arXiv 1710.09412)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from raytrain_plus.algorithms.aspect import Advice, AspectError, Step


class Mixing(NamedTuple):
    """How samples have been mixed, each with one partner of the same part.

    Attributes:
        partners: the partner of each sample, indices of shape (n,).
        own: the share that is the sample's own, in [0, 1], shape (n,); the rest is its partner's.
    """

    partners: Tensor
    own: Tensor


def soft_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Return labels as class probabilities; those that are soft already pass through.

    Args:
        labels: class indices of shape (n,) and any integer type, or probabilities of shape
            (n, classes).
        logits: shape (n, classes); gives the number of classes and the dtype.

    Returns:
        Probabilities of shape (n, classes).

    Raises:
        AspectError: the labels or the logits have another shape or type.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise AspectError(
            f"soft labels need outputs of shape (n, classes), and the model's are {got}: "
            "leave out the algorithms that mix or smooth labels"
        )
    soft = labels.is_floating_point()
    if labels.shape != (logits.shape if soft else logits.shape[:1]):
        raise AspectError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not go with outputs "
            f"of shape {tuple(logits.shape)}: they must be class indices, integers of shape (n,), "
            "or probabilities, floating, of shape (n, classes)"
        )
    if soft:
        return labels.to(logits.dtype)
    return functional.one_hot(labels.to(torch.int64), logits.shape[1]).to(logits.dtype)


def mix_labels(labels: Tensor, mixing: Mixing, logits: Tensor) -> Tensor:
    """Return the class probabilities of mixed samples.

    Args:
        labels: of the samples before mixing, as `soft_labels` takes them.
        mixing: how they were mixed.
        logits: shape (n, classes); gives the number of classes and the dtype.

    Returns:
        Probabilities of shape (n, classes).

    Raises:
        AspectError: there are not as many labels as mixed samples, or they cannot be made soft.
    """
    if len(labels) != len(mixing.partners):
        raise AspectError(
            f"{len(mixing.partners)} samples were mixed and the loss is given {len(labels)} "
            "labels: an algorithm that drops samples must do so before they are mixed; name it in "
            "`runs_after` of the one that mixes"
        )
    own = mixing.own.to(logits.device, logits.dtype)[:, None]
    soft = soft_labels(labels, logits)
    return own * soft + (1 - own) * soft[mixing.partners]


def loss_of_mixed(step: Step, mixing: Mixing | None) -> Advice:
    """Advise around a loss: mix its labels as the samples were mixed, if they were."""
    if mixing is None:
        return
    labels = step.batch[step.target]
    step.batch[step.target] = mix_labels(labels, mixing, step.outputs)
    yield
    step.batch[step.target] = labels
