"""Label smoothing (Szegedy et al. 2015, arXiv 1512.00567)."""

from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.labels import soft_labels


class LabelSmoothing(Aspect):
    """Train towards a mixture of the label and the uniform distribution.

    The task's loss must accept class probabilities, as `torch.nn.functional.cross_entropy` does.

    Attributes:
        smoothing: the share of the uniform distribution, in [0, 1]. Default 0.1.
    """

    smoothing: float = Field(default=0.1, ge=0, le=1)

    def loss(self, step: Step) -> Advice:
        """Smooth the labels for the loss alone."""
        hard = step.batch[step.target]
        step.batch[step.target] = smooth_labels(hard, step.outputs, self.smoothing)
        yield
        step.batch[step.target] = hard


def smooth_labels(labels: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """Return class probabilities.

    Args:
        labels: class indices, shape (n,), or class probabilities, shape (n, classes).
        logits: shape (n, classes); gives the number of classes and the dtype.
        smoothing: the share of the uniform distribution, in [0, 1].

    Returns:
        Probabilities of shape (n, classes).
    """
    return soft_labels(labels, logits) * (1.0 - smoothing) + smoothing / logits.shape[1]
