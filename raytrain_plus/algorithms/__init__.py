"""Speed-up algorithms as aspects around an unchanged model, one method per file."""

from raytrain_plus.algorithms.aspect import JOIN_POINTS as JOIN_POINTS
from raytrain_plus.algorithms.aspect import Advice as Advice
from raytrain_plus.algorithms.aspect import Aspect as Aspect
from raytrain_plus.algorithms.aspect import AspectError as AspectError
from raytrain_plus.algorithms.aspect import AspectWarning as AspectWarning
from raytrain_plus.algorithms.aspect import Step as Step
from raytrain_plus.algorithms.aspect import Training as Training
from raytrain_plus.algorithms.gradient_clipping import GradientClipping as GradientClipping
from raytrain_plus.algorithms.label_smoothing import LabelSmoothing as LabelSmoothing
from raytrain_plus.algorithms.library import ALGORITHMS as ALGORITHMS
from raytrain_plus.algorithms.naming import parse_algorithm as parse_algorithm
from raytrain_plus.algorithms.surgery import Surgery as Surgery
from raytrain_plus.algorithms.weave import Weave as Weave
