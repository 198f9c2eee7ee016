"""All entries of the conformance matrix."""

from tests.algorithms.cases import (
    augmentations,
    computation,
    language,
    optimisation,
    vision,
)

CASES = [
    *augmentations.CASES,
    *vision.CASES,
    *language.CASES,
    *optimisation.CASES,
    *computation.CASES,
]
