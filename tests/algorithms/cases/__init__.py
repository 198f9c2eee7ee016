"""What the conformance matrix must know of each aspect; one without an entry fails the suite."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raytrain_plus.algorithms import Aspect
from tests.algorithms.tiny import TinyImages, TinyTokens


@dataclass(frozen=True, kw_only=True)
class Case:
    """One aspect in the matrix.

    Attributes:
        aspect: with settings other than the defaults, such that it acts within twelve steps.
        tasks: the tiny tasks that it is for.
        acts: says of a step, from 0, whether any of its advice in the step must act (`fit`,
            `evaluate` and `checkpoint` do not count); None if it only changes the model.
        neutral: the same aspect set so that the trained bits are those without it; None if there is
            no such setting.
        restores: whether undoing `fit` gives back a model with the plain one's classes and names.
        same_function: whether the model computes the same after that as before, for evaluation.
        averages: whether it leaves the weights alone and keeps averages of them.
        slow: whether it costs seconds to start; it is then paired with few others.
    """

    aspect: Aspect
    tasks: Sequence[type] = (TinyImages, TinyTokens)
    acts: Callable[[int], bool] | None = lambda _: True
    neutral: Aspect | None = None
    restores: bool = True
    same_function: bool = False
    averages: bool = False
    slow: bool = False
