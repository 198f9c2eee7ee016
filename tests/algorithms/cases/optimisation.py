"""Methods that change the loss, the optimisation, or the resulting weights."""

from raytrain_plus.algorithms.ema import EMA
from raytrain_plus.algorithms.gradient_clipping import GradientClipping
from raytrain_plus.algorithms.label_smoothing import LabelSmoothing
from raytrain_plus.algorithms.layer_freezing import LayerFreezing
from raytrain_plus.algorithms.sam import SAM
from raytrain_plus.algorithms.selective_backprop import SelectiveBackprop
from raytrain_plus.algorithms.swa import SWA
from tests.algorithms.cases import Case
from tests.algorithms.tiny import TinyImages

CASES = [
    Case(
        aspect=EMA(half_life="3ba", update_interval="2ba", start="0.25dur"),
        acts=lambda step: step in range(2, 12, 2),
        neutral=EMA(),
        averages=True,
    ),
    Case(
        aspect=GradientClipping(kind="adaptive", ratio=0.02),
        neutral=GradientClipping(norm=1e9),
        same_function=True,
    ),
    Case(
        aspect=LabelSmoothing(smoothing=0.3),
        tasks=(TinyImages,),
        neutral=LabelSmoothing(smoothing=0.0),
        same_function=True,
    ),
    Case(
        aspect=LayerFreezing(fraction=0.7, start="2ba", finish="0.75dur"),
        acts=lambda step: step >= 3,
        neutral=LayerFreezing(fraction=0.0),
        same_function=True,
    ),
    Case(
        aspect=SAM(rho=0.1, interval=2),
        acts=lambda step: step % 2 == 0,
        neutral=SAM(rho=0.0),
        same_function=True,
    ),
    Case(
        aspect=SelectiveBackprop(keep=0.6, start="0.25dur", finish="0.75dur", how="score"),
        acts=lambda step: step in range(3, 9, 2),
        neutral=SelectiveBackprop(keep=1.0),
        same_function=True,
    ),
    Case(
        aspect=SWA(start="0.5dur", interval="2ba", learning_rate=0.5),
        acts=lambda step: step >= 5,
        neutral=SWA(),
        averages=True,
    ),
]
