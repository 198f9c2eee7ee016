"""What a test needs beside Python: it is skipped without it, unless it is expected to be there."""

import os

import pytest

VARIABLE = "RAYTRAIN_PLUS_EXPECT"


def require(name: str, why_not: str) -> None:
    """Skip the test if what it needs is missing; fail it if the environment promises it.

    Args:
        name: what is needed, as `RAYTRAIN_PLUS_EXPECT` (names, with commas) calls it.
        why_not: why it is not there; empty if it is.
    """
    if not why_not:
        return
    expected = [one.strip() for one in os.environ.get(VARIABLE, "").split(",")]
    if name in expected:
        pytest.fail(f"{VARIABLE} says that there is {name}, but {why_not}", pytrace=False)
    pytest.skip(f"{name}: {why_not}")
