"""Requirements of a test: without them it is skipped, or fails if they are expected."""

import os

import pytest

VARIABLE = "RAYTRAIN_PLUS_EXPECT"


def require(name: str, why_not: str) -> None:
    """Skip the test if a requirement is missing; fail it if the environment promises it.

    Args:
        name: the requirement's name in `RAYTRAIN_PLUS_EXPECT` (names, with commas).
        why_not: why it is missing; empty if it is there.
    """
    if not why_not:
        return
    expected = [one.strip() for one in os.environ.get(VARIABLE, "").split(",")]
    if name in expected:
        pytest.fail(f"{VARIABLE} says that there is {name}, but {why_not}", pytrace=False)
    pytest.skip(f"{name}: {why_not}")
