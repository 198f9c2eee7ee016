"""Methods that change how the model is computed."""

from raytrain_plus.algorithms.compile import Compile
from raytrain_plus.algorithms.factorize import Factorize
from raytrain_plus.algorithms.gyro_dropout import GyroDropout
from raytrain_plus.algorithms.low_precision import LowPrecision
from tests.algorithms.cases import Case
from tests.algorithms.tiny import TinyImages

CASES = [
    Case(aspect=Factorize(rank=2, min_features=8), acts=None, same_function=True),
    Case(
        aspect=GyroDropout(sigma=6, tau=3, p=0.3, interval="2ba"),
        tasks=(TinyImages,),
        same_function=True,
    ),
    Case(aspect=Compile(versions=32), tasks=(TinyImages,), same_function=True, slow=True),
    Case(aspect=LowPrecision(evaluation=False), same_function=True),
]
