"""What the conformance matrix needs to know about each aspect; an aspect without an entry fails."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raytrain_plus.algorithms import Aspect
from tests.algorithms.tiny import TinyImages, TinyTokens


@dataclass(frozen=True, kw_only=True)
class Case:
    """One aspect in the matrix.

    Attributes:
        aspect: the aspect, with settings other than the defaults, so that it acts within twelve
            steps.
        tasks: the tiny tasks that it can be used with.
        acts: step, from 0 -> whether any of its advice in the step must act (`fit`, `evaluate` and
            `checkpoint` do not count); None if it only changes the model.
        neutral: the same aspect with settings that do not change the trained bits; None if there
            are no such settings.
        restores: whether undoing `fit` restores the plain model's classes and names.
        same_function: whether the model computes the same in evaluation before and after undoing.
        averages: whether it leaves the weights unchanged and keeps averages of them.
        slow: whether it takes seconds to start; if so, it is paired with few others.
    """

    aspect: Aspect
    tasks: Sequence[type] = (TinyImages, TinyTokens)
    acts: Callable[[int], bool] | None = lambda _: True
    neutral: Aspect | None = None
    restores: bool = True
    same_function: bool = False
    averages: bool = False
    slow: bool = False
