"""Label smoothing (Szegedy et al. 2015, arXiv 1512.00567)."""

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.labels import known_share, labels_of, logits_of, soft_labels


class LabelSmoothing(Aspect):
    """Train towards a mixture of the label and the uniform distribution.

    The task's loss must accept class probabilities, as `torch.nn.functional.cross_entropy` does.
    Samples without a label (the task's `ignore_index`) stay unlabelled.

    Attributes:
        smoothing: the share of the uniform distribution, in [0, 1]. Default 0.1.
    """

    smoothing: float = Field(default=0.1, ge=0, le=1)

    def loss(self, step: Step) -> Advice:
        """Smooth the labels, for the loss only."""
        hard, logits = labels_of(step), logits_of(step)
        soft = soft_labels(hard, logits, step.ignore_index)
        step.batch[step.target] = smooth_labels(
            soft, logits, self.smoothing, known_share(step, hard)
        )
        yield
        step.batch[step.target] = hard


def smooth_labels(
    labels: Tensor, logits: Tensor, smoothing: float, known: Tensor | None = None
) -> Tensor:
    """Return class probabilities.

    Args:
        labels: class indices, shape (n,), or class probabilities, shape (n, classes).
        logits: shape (n, classes); gives the number of classes and the dtype.
        smoothing: the share of the uniform distribution, in [0, 1].
        known: the share of each sample's label that is known, shape (n,); 0 leaves a sample
            unlabelled. Default: all of it.

    Returns:
        Probabilities of shape (n, classes).
    """
    soft = soft_labels(labels, logits) * (1.0 - smoothing)
    smooth = soft + smoothing / logits.shape[1]
    if known is None:
        return smooth
    share = known.to(soft.dtype)[:, None]
    return torch.where(share == 1, smooth, soft + share * (smoothing / logits.shape[1]))
