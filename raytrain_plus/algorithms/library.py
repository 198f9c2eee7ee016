"""The methods that come with the package, by name."""

from raytrain_plus.algorithms.aspect import Aspect
from raytrain_plus.algorithms.gradient_clipping import GradientClipping
from raytrain_plus.algorithms.label_smoothing import LabelSmoothing

ALGORITHMS: dict[str, type[Aspect]] = {
    kind.__name__: kind for kind in (GradientClipping, LabelSmoothing)
}
