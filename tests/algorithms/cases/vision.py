"""Methods for convolutional networks, and for residual networks."""

from raytrain_plus.algorithms.blur_pool import BlurPool
from raytrain_plus.algorithms.channels_last import ChannelsLast
from raytrain_plus.algorithms.ghost_batch_norm import GhostBatchNorm
from raytrain_plus.algorithms.squeeze_excite import SqueezeExcite
from raytrain_plus.algorithms.stochastic_depth import StochasticDepth
from raytrain_plus.algorithms.weight_standardization import WeightStandardization
from tests.algorithms.cases import Case
from tests.algorithms.tiny import TinyImages

CASES = [
    Case(aspect=BlurPool(blur_first=False, min_channels=4), tasks=(TinyImages,), acts=None),
    Case(
        aspect=ChannelsLast(column="image"),
        tasks=(TinyImages,),
        same_function=True,
    ),
    Case(
        aspect=GhostBatchNorm(size=2),
        tasks=(TinyImages,),
        acts=None,
        neutral=GhostBatchNorm(size=4),
        same_function=True,
    ),
    Case(aspect=SqueezeExcite(min_channels=4, reduction=2), tasks=(TinyImages,), acts=None),
    Case(
        aspect=StochasticDepth(drop_rate=0.6, decay="uniform"),
        acts=None,
        neutral=StochasticDepth(drop_rate=0.0),
        same_function=True,
    ),
    Case(
        aspect=WeightStandardization(eps=1e-4, ignore_last=1),
        tasks=(TinyImages,),
        acts=None,
        same_function=True,
    ),
]
